"""Discovery: good plugins, clashes of names, and blocking before import."""

from __future__ import annotations

from pathlib import Path

import pytest

from exfm.errors import ConfigError, PluginError
from exfm.registry.discovery import discover
from exfm.registry.hooks import HOOK_BY_KIND, INTERFACES, HookSpecs

LAZY = """
import exfm

@exfm.hookimpl
def exfm_register_backbones():
    return [exfm.LazyComponent(name, "{module}:Thing") for name in {names}]
"""


def install(plugins, module: str, *names: str, **more: str) -> None:
    plugins.install(module, LAZY.format(module=module, names=list(names)), **more)


def test_every_kind_has_a_hook_and_an_interface():
    assert HOOK_BY_KIND.keys() == INTERFACES.keys()
    assert {name for name in vars(HookSpecs) if name.startswith("exfm_")} == set(HOOK_BY_KIND.values())


def test_the_built_in_plugins_register_like_anyone_elses():
    registry = discover()
    built_in = [plugin for plugin in registry.plugins.values() if plugin.distribution == "exfm"]
    assert {plugin.status for plugin in built_in} == {"loaded"}
    for plugin in built_in:
        assert plugin.components and plugin.module.startswith("exfm_plugins.")
        for component in plugin.components:
            kind, _, name = component.partition(".")
            assert registry.resolve(kind, name).name == name
            assert registry.provider(kind, name) == plugin
    assert registry.default_plan() == "single"


def test_a_third_partys_components_are_found(plugins):
    install(plugins, "thing", "one", "two", distribution="exfm-plugin-thing")
    registry = discover()
    assert registry.plugins["thing"].components == ("backbone.one", "backbone.two")
    assert {"one", "two", "dlrm"} <= set(registry.names("backbone"))
    assert registry.provider("backbone", "one").provider == "exfm-plugin-thing 1.0 (plugin 'thing')"


def test_an_iterator_is_as_good_as_a_list(plugins):
    source = LAZY.format(module="thing", names=["one"])
    plugins.install("thing", source.replace("return [", "yield from ["))
    assert discover().plugins["thing"].components == ("backbone.one",)


@pytest.mark.parametrize("count", [2, 3])
def test_a_name_that_several_distributions_offer_belongs_to_none(plugins, count):
    modules = [f"thing_{index}" for index in range(count)]
    for module in modules:
        install(plugins, module, "clash", f"own_{module}")
    registry = discover()
    for module in modules:
        assert registry.plugins[module].status == "broken"
        assert "backbone 'clash' is offered by" in registry.plugins[module].reason
        assert all(f"{other} 1.0 (plugin '{other}')" in registry.plugins[module].reason for other in modules)
    with pytest.raises(PluginError, match="--block-plugin") as error:
        registry.resolve("backbone", "clash")
    assert all(module in str(error.value) for module in modules)
    assert registry.resolve("backbone", "dlrm").name == "dlrm"

    alone = discover(modules[1:])
    assert alone.plugins[modules[0]].status == "loaded" and "clash" in alone.names("backbone")


def test_a_name_of_a_built_in_plugin_is_no_one_elses(plugins):
    install(plugins, "thing", "wukong")
    registry = discover()
    with pytest.raises(
        PluginError, match=r"offered by exfm .* and by thing 1\.0|offered by thing 1\.0 .* and by exfm "
    ):
        registry.resolve("backbone", "wukong")
    assert discover(["thing"]).resolve("backbone", "wukong").name == "wukong"


def test_the_same_plugin_name_in_two_distributions(plugins):
    install(plugins, "first", "one", plugin="thing")
    install(plugins, "second", "two", plugin="thing")
    registry = discover()
    ours = {name: plugin for name, plugin in registry.plugins.items() if plugin.distribution in ("first", "second")}
    assert len(ours) == 2 and {plugin.status for plugin in ours.values()} == {"loaded"}
    assert {"one", "two"} <= set(registry.names("backbone"))
    assert {plugin.status for name, plugin in discover(["thing"]).plugins.items() if name in ours} == {"blocked"}
    assert discover(["second"]).names("backbone") == sorted({*registry.names("backbone")} - {"two"})


def test_a_misspelt_component_names_its_neighbour_or_its_kind():
    registry = discover()
    with pytest.raises(PluginError, match=r"no backbone is called 'wukon'\. Did you mean 'wukong'"):
        registry.resolve("backbone", "wukon")
    with pytest.raises(PluginError, match="'din' is a sequence_encoder"):
        registry.resolve("backbone", "din")


WITNESS = """
from pathlib import Path

Path({file!r}).touch()
""" + LAZY.format(module="witness", names=["seen"])


@pytest.fixture
def imported(plugins, tmp_path) -> Path:
    """A file that a plugin touches when it is imported."""
    file = tmp_path / "imported"
    plugins.install("witness", WITNESS.replace("{file!r}", repr(str(file))), distribution="exfm-plugin_witness")
    return file


@pytest.mark.parametrize("name", ["witness", "exfm-plugin_witness", "exfm-plugin-witness", "Exfm.Plugin.Witness"])
def test_a_blocked_plugin_is_not_imported(name, imported):
    registry = discover([name])
    assert not imported.exists()
    assert registry.plugins["witness"].status == "blocked"
    assert "seen" not in registry.names("backbone")
    discover()
    assert imported.exists()


def test_the_command_line_blocks(imported, exfm_cli):
    shown = exfm_cli("--block-plugin", "witness", "plugins")
    assert shown.status == 0 and "witness is blocked: " in shown.out
    assert not imported.exists()


@pytest.mark.parametrize("block", [["witness"], "witness", ["exfm-plugin-witness"]])
def test_the_experiment_blocks(block, imported, experiment, write, exfm_cli):
    experiment["plugins"]["block"] = block
    experiment["models"]["fm"]["backbone"] = {"name": "seen"}
    outcome = exfm_cli("validate", write(experiment))
    assert outcome.status == 2 and not imported.exists()
    assert ("is blocked" if isinstance(block, list) else "plugins.block: must be a list") in outcome.err


def test_blocking_what_an_experiment_needs_is_explained(experiment, write):
    import exfm

    with pytest.raises(ConfigError, match=r"models\.fm\.backbone\.name: no backbone is called 'wukong'.* is blocked"):
        exfm.load_experiment(write(experiment), block=["backbones"])
