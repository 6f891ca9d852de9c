"""Tests plugins that are broken in any way: a clear line says how, and other plugins are not affected."""

from __future__ import annotations

import sys

import pytest

from exfm.errors import PluginError
from exfm.registry.discovery import discover

HOOK = """
import exfm
from torch import nn

@exfm.hookimpl
def exfm_register_backbones():
    return {returned}
"""
CLASS = """
import exfm
from pydantic import BaseModel, Field

class Thing(exfm.{base}):
    {body}

@exfm.hookimpl
def exfm_register_backbones():
    return [Thing]
"""
BROKEN = {
    "raises": ("1/0", ["ZeroDivisionError: division by zero", "thing.py:1"]),
    "exits": ("import sys\nsys.exit('not today')", ["SystemExit: not today", "thing.py:2"]),
    "says nothing": ("raise RuntimeError", ["RuntimeError: no message"]),
    "cannot print its error": (
        "class E(Exception):\n    def __str__(self): return 3\nraise E",
        ["E: no message", "thing.py:3"],
    ),
    "writes a novel": ("raise ValueError('word\\n' * 1000)", ["ValueError: word word", "..."]),
    "syntax": ("def f(:", ["SyntaxError"]),
    "dependency": ("import no_such_package", ["ModuleNotFoundError: No module named 'no_such_package'", "thing.py:1"]),
    "misspelt hook": (
        "import exfm\n@exfm.hookimpl\ndef exfm_register_backbone(): return []",
        ["no hook is called 'exfm_register_backbone'", "Did you mean 'exfm_register_backbones'"],
    ),
    "unmarked hook": ("def exfm_register_backbones(): return []", ["not marked with @exfm.hookimpl"]),
    "no hook": ("x = 1", ["it offers nothing", "@exfm.hookimpl"]),
    "argument": (
        "import exfm\n@exfm.hookimpl\ndef exfm_register_backbones(config): return []",
        ["exfm_register_backbones", "config"],
    ),
    "newer": ("EXFM_API_VERSION = 3", ["plugin API 3, newer than this exfm's API 2"]),
    "older": ("EXFM_API_VERSION = 1", ["plugin API 1, older than this exfm's API 2"]),
    "odd version": ("EXFM_API_VERSION = '1'", ["EXFM_API_VERSION must be a whole number", "'1'"]),
    "true version": ("EXFM_API_VERSION = True", ["EXFM_API_VERSION must be a whole number", "True"]),
    "hook raises": (HOOK.format(returned="[][0]"), ["IndexError", "thing.py:7"]),
    "None": (HOOK.format(returned="None"), ["must return a list", "not None"]),
    "bare class": (HOOK.format(returned="exfm.Backbone"), ["must return a list"]),
    "text": (HOOK.format(returned="'thing'"), ["must return a list", "'thing'"]),
    "number": (HOOK.format(returned="3"), ["must return a list", "not 3"]),
    "no class": (HOOK.format(returned="[3]"), ["3 is not a subclass of exfm.Backbone"]),
    "no backbone": (HOOK.format(returned="[nn.Linear]"), ["Linear", "is not a subclass of exfm.Backbone"]),
    "no name": (CLASS.format(base="Backbone", body="pass"), ["Thing.name must be a lower-case identifier", "None"]),
    "bad name": (CLASS.format(base="Backbone", body="name = 'My Thing'"), ["lower-case identifier, not 'My Thing'"]),
    "silent field": (
        CLASS.format(base="Backbone", body="class Config(exfm.ComponentConfig):\n        size: int = 3"),
        ["Thing.Config: no description for size", "thing.py:5"],
    ),
    "untyped field": (
        CLASS.format(
            base="Backbone", body="class Config(exfm.ComponentConfig):\n        size = Field(3, description='S.')"
        ),
        ["PydanticUserError", "annotat", "size", "thing.py:"],
    ),
    "untyped value": (
        CLASS.format(base="Backbone", body="class Config(exfm.ComponentConfig):\n        size = 3"),
        ["PydanticUserError", "non-annotated attribute", "size"],
    ),
    "another kind": (
        CLASS.format(base="SequenceEncoder", body="name = 'thing'"),
        ["Thing", "is not a subclass of exfm.Backbone"],
    ),
    "foreign config": (
        CLASS.format(base="Backbone", body="class Config(BaseModel):\n        size: int = 3"),
        ["Thing.Config must be a subclass of exfm.ComponentConfig"],
    ),
    "neither a loss nor parameters": (
        CLASS.format(base="TransferStrategy", body="name = 'thing'"),
        ["Thing must extend exfm.DistillationStrategy", "or exfm.ParameterStrategy"],
    ),
    "no teacher": (
        CLASS.format(base="TransferStrategy", body="class Config(exfm.ComponentConfig):\n        pass"),
        ["Thing.Config must be a subclass of exfm.transfer.TransferConfig"],
    ),
    "lazy without module": (
        HOOK.format(returned="[exfm.LazyComponent('thing', 'nowhere_at_all:Thing')]"),
        ["backbone 'thing'", "nowhere_at_all:Thing", "no such module"],
    ),
    "lazy submodule of a module": (
        HOOK.format(returned="[exfm.LazyComponent('thing', 'thing.model:Thing')]"),
        ["thing.model:Thing", "no such module"],
    ),
    "lazy target": (HOOK.format(returned="[exfm.LazyComponent('thing', 'thing')]"), ["'module:Class', not 'thing'"]),
    "lazy name": (HOOK.format(returned="[exfm.LazyComponent('Thing', 'thing:T')]"), ["identifier, not 'Thing'"]),
    "twice": (
        HOOK.format(returned="[exfm.LazyComponent('thing', 'thing:A'), exfm.LazyComponent('thing', 'thing:B')]"),
        ["it offers backbone 'thing' twice"],
    ),
}


@pytest.fixture(scope="module")
def built_in() -> list[str]:
    return [name for name, plugin in discover().plugins.items() if plugin.status == "loaded"]


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_reported_in_one_line(case, plugins, built_in, exfm_cli):
    source, words = BROKEN[case]
    plugins.install("thing", source, distribution="exfm-plugin-thing")
    registry = discover()
    thing = registry.plugins["thing"]
    assert thing.status == "broken" and thing.distribution == "exfm-plugin-thing" and thing.version == "1.0"
    assert all(word in thing.reason for word in words), thing.reason
    assert "\n" not in thing.reason and len(thing.reason) < 600
    assert [name for name in built_in if registry.plugins[name].status != "loaded"] == []
    with pytest.raises(PluginError, match=r"exfm-plugin-thing 1\.0 \(plugin 'thing'\) is broken: ") as error:
        registry.resolve("backbone", "thing")
    assert words[0] in str(error.value)

    sys.modules.pop("thing", None)
    shown = exfm_cli("plugins")
    assert shown.status == 0 and shown.err == ""
    assert sum(line.startswith("thing is broken: ") for line in shown.out.splitlines()) == 1
    assert "Traceback" not in shown.out


@pytest.mark.parametrize("target", ["not a module!", "thing:missing", "thing_that_is_not_there", ":", "thing:"])
def test_an_entry_point_that_leads_nowhere(target, plugins):
    plugins.install("thing", "import exfm", target=target)
    assert discover().plugins["thing"].status == "broken"


def test_metadata_that_cannot_be_read(plugins, built_in):
    plugins.add_distribution("garbled", "[exfm]\nno equals sign here\n")
    plugins.add_distribution("nameless", "[exfm]\nnameless = no_such_module\n", metadata="")
    plugins.add_distribution("binary", b"[exfm]\n\xff\xfe = x\n")
    plugins.add_distribution("other-group", "[console_scripts]\nno equals sign here\n")
    registry = discover()
    assert registry.plugins["garbled"].status == "broken"
    assert "entry_points.txt" in registry.plugins["garbled"].reason
    assert registry.plugins["nameless"].status == "broken"
    assert "other-group" not in registry.plugins
    assert all(registry.plugins[name].status == "loaded" for name in built_in)


def test_nothing_is_remembered(plugins):
    plugins.install("thing", "1/0")
    assert discover().plugins["thing"].status == "broken"
    plugins.add_module("thing", HOOK.format(returned="[]") + "# mended, and longer than it was\n")
    assert discover().plugins["thing"].status == "loaded"


def test_interrupting_the_import_of_a_plugin_interrupts_exfm(plugins):
    plugins.install("thing", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover()


LAZY = {
    "another name": (
        "import exfm\nclass Thing(exfm.Backbone):\n    name = 'other'",
        ["thing_model:Thing is called 'other', not 'thing'"],
    ),
    "no class": ("Thing = 3", ["3 is not a subclass of exfm.Backbone"]),
    "no attribute": ("", ["AttributeError", "Thing"]),
    "dependency": ("import no_such_package", ["No module named 'no_such_package'", "thing_model.py:1", "exfm doctor"]),
    "exits": ("raise SystemExit(3)", ["SystemExit: 3", "thing_model.py:1"]),
    "raises": ("print('to the wrong place')\n1/0", ["ZeroDivisionError"]),
}


@pytest.mark.parametrize("case", LAZY)
def test_a_lazy_component_that_cannot_be_imported(case, plugins, exfm_cli):
    source, words = LAZY[case]
    plugins.install("thing", HOOK.format(returned="[exfm.LazyComponent('thing', 'thing_model:Thing')]"))
    plugins.add_module("thing_model", source)
    for command in (["plugins"], ["components"], ["schema"], ["show", "backbone.dlrm"]):
        listed = exfm_cli(*command)
        assert listed.status == 0 and "wrong place" not in listed.out
    shown = exfm_cli("show", "backbone.thing")
    assert shown.status == 2 and shown.out == ""
    assert "backbone 'thing' of thing 1.0 (plugin 'thing') cannot be loaded" in shown.err
    assert all(word in shown.err for word in words), shown.err
    assert len([line for line in shown.err.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in shown.err
