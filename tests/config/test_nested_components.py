"""Tests a third party's component that holds other components."""

from __future__ import annotations

import pytest

import exfm
from exfm.config.component_sources import component_hashes
from exfm.config.json_schema import experiment_schema
from exfm.registry.discovery import discover

PLUGIN = """
from typing import Annotated

import exfm
from exfm.components import ComponentField, ComponentSpec
from pydantic import BaseModel, Field

class Tower(BaseModel):
    model_config = {"extra": "forbid"}
    width: int = Field(8, description="Its width.")

class Shell(exfm.Backbone):
    name = "shell"

    class Config(exfm.ComponentConfig):
        inner: Annotated[ComponentSpec, ComponentField("backbone")] = Field(description="What it wraps.")
        more: tuple[Annotated[ComponentSpec, ComponentField("backbone")], ...] = Field((), description="M.")
        towers: dict[str, Tower] = Field(default_factory=dict, description="Towers by name.")
        pause: exfm.sources.Duration = Field("1h", description="A pause.")

@exfm.hookimpl
def exfm_register_backbones():
    return [Shell]
"""


@pytest.fixture
def shell(plugins, experiment, write):
    """Returns a function that loads the experiment with a shell of these fields as backbone of its FM."""
    plugins.install("shell", PLUGIN)

    def load(**fields):
        experiment["models"]["fm"]["backbone"] = {"name": "shell", **fields}
        return exfm.load_experiment(write(experiment))

    return load


def test_a_component_inside_a_component(shell):
    resolved = shell(inner={"name": "shell", "inner": {"name": "dlrm"}}, more=[{"name": "wukong", "layers": 3}])
    config = resolved.config.models["fm"].backbone.config
    assert (config.inner.name, config.inner.config.inner.name, config.more[0].config.layers) == ("shell", "dlrm", 3)
    assert {"backbone.shell", "backbone.dlrm", "backbone.wukong"} <= component_hashes(resolved).keys()
    written = resolved.as_dict()["models"]["fm"]["backbone"]
    assert written["inner"]["inner"]["name"] == "dlrm" and written["pause"] == "1h"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, r"backbone\.inner: the required key 'inner' is missing"),
        ({"inner": {"name": "wukon"}}, r"backbone\.inner\.name: no backbone is called 'wukon'\. Did you mean 'wukong'"),
        ({"inner": {"name": "wukong", "layer": 1}}, r"backbone\.inner\.layer: unknown key.* Did you mean 'layers'"),
        ({"inner": {"name": "shell"}}, r"backbone\.inner\.inner: the required key 'inner' is missing"),
        (
            {"inner": {"name": "shell", "inner": {"name": "wukong", "layer": 1}}},
            r"backbone\.inner\.inner\.layer: unknown key 'layer'\. Did you mean 'layers'",
        ),
        (
            {"inner": {"name": "dlrm"}, "more": [{"name": "dlrm"}, {"name": "wukong", "layers": "x"}]},
            r"backbone\.more\.1\.layers: must be a whole number; given: 'x'",
        ),
        (
            {"inner": {"name": "dlrm"}, "towers": {"left": {"widht": 3}}},
            r"backbone\.towers\.left\.widht: unknown key 'widht'\. Did you mean 'width'\? \(one of: width\)",
        ),
        ({"inner": {"name": "dlrm"}, "towers": {"left": 3}}, r"towers\.left: must be a mapping \{width\}; given: 3"),
        ({"inner": {"name": "dlrm"}, "pause": 3}, r"backbone\.pause: a duration is a number with a unit"),
    ],
)
def test_a_mistake_inside(fields, words, shell):
    with pytest.raises(exfm.ConfigError, match=words) as error:
        shell(**fields)
    assert "more error" not in str(error.value)


def test_the_schema_links_to_the_kind(shell):
    schema = experiment_schema(discover())
    properties = schema["$defs"]["backbone.shell"]["properties"]
    assert properties["inner"]["$ref"] == properties["more"]["items"]["$ref"] == "#/$defs/backbone"
    assert properties["towers"]["additionalProperties"]["$ref"] == "#/$defs/backbone.shell.Tower"
    assert "width" in schema["$defs"]["backbone.shell.Tower"]["properties"]
