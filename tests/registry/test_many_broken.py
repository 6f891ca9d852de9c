"""Installs every kind of broken plugin at once: each is reported in a line, and other commands work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.registry.test_quarantine import BROKEN, HOOK

REQUIRED = {
    "raises on import": "raises",
    "wrong hook name": "misspelt hook",
    "wrong signature": "argument",
    "duplicate component": "twice",
    "Config without types": "untyped field",
    "newer API": "newer",
    "older API": "older",
    "missing dependency": "dependency",
    "component that is not a subclass": "no backbone",
}
"""Kinds of broken plugins that must be installed, and the key of each in ``BROKEN``."""


@pytest.fixture
def broken(plugins) -> dict[str, str]:
    """Installs the broken plugins; returns the distribution of each by the plugin's name."""
    for number, (source, _) in enumerate(BROKEN.values()):
        relocated = source.replace("'thing.model:", f"'broken_{number}.model:")
        plugins.install(f"broken_{number}", relocated, distribution=f"exfm-plugin-broken-{number}")
    twin = HOOK.format(returned="[exfm.LazyComponent('twin', __name__ + ':Twin')]")
    for name in ("twin_1", "twin_2"):
        plugins.install(name, twin, distribution=f"exfm-plugin-{name}")
    plugins.install("nowhere", "", target="a_module_that_is_not_there", distribution="exfm-plugin-nowhere")
    plugins.add_distribution("exfm-plugin-garbled", "[exfm]\nno equals sign here\n")
    single = {f"broken_{number}": f"exfm-plugin-broken-{number}" for number in range(len(BROKEN))}
    named = {name: f"exfm-plugin-{name}" for name in ("twin_1", "twin_2", "nowhere")}
    return single | named | {"exfm-plugin-garbled": ""}


def test_they_are_more_than_twenty_and_of_every_kind(broken):
    assert len(broken) > 20 and set(REQUIRED.values()) <= BROKEN.keys()


def test_each_has_its_line_and_every_command_works(broken, plugins, experiment, write, exfm_cli, tmp_path: Path):
    shown = exfm_cli("plugins")
    assert shown.status == 0 and "Traceback" not in shown.out + shown.err
    for name, distribution in broken.items():
        lines = [line for line in shown.out.splitlines() if line.startswith(f"{name} is broken: ")]
        assert len(lines) == 1 and len(lines[0]) < 700, name
        assert not distribution or f" {distribution} " in shown.out
    listed = {plugin["name"]: plugin for plugin in json.loads(exfm_cli("plugins", "--json").out)}
    assert {name for name, plugin in listed.items() if plugin["status"] != "loaded"} == broken.keys()

    experiment["run_dir"] = str(tmp_path / "run")
    file = write(experiment)
    run = experiment["run_dir"]
    for command in (
        ["components"],
        ["schema"],
        ["show", "backbone.dlrm"],
        ["validate", file],
        ["run", file],
        ["report", run],
        ["predict", file, "--model", "vm", "--out", str(tmp_path / "predicted.parquet")],
        ["export", file, "--model", "vm", "--out", str(tmp_path / "export"), "--no-compile"],
    ):
        if command[0] == "export":  # torch.export reads the entry points of all distributions, and fails on this file
            shutil.rmtree(plugins.path / "exfm_plugin_garbled-1.0.dist-info")
        done = exfm_cli(*command)
        assert done.status == 0, (command, done.err)
        assert not any(name in done.out for name in broken)


def test_an_experiment_that_names_a_broken_plugin_gets_the_reason(broken, experiment, write, exfm_cli):
    experiment["models"]["vm"]["backbone"] = {"name": "twin"}
    done = exfm_cli("run", write(experiment))
    assert done.status == 2 and done.err.count("\n") == 1
    assert "models.vm.backbone.name: " in done.err and "backbone 'twin' is offered by exfm-plugin-twin_1" in done.err
