"""`exfm_registry`: an experiment can name the components that a test puts in, and no others."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import pytest
from pydantic import Field

import exfm
import exfm_plugins.backbones
import exfm_plugins.parallel
import exfm_plugins.sources
from exfm.registry.discovery import default_registry, discover
from tests.testing.sound import SoundBackbone


class Shell(exfm.Backbone):
    name = "shell"

    class Config(exfm.ComponentConfig):
        inner: Annotated[exfm.components.ComponentSpec, exfm.components.ComponentField("backbone")] = Field(
            description="What it wraps."
        )


def test_it_is_empty_whatever_is_installed(exfm_registry) -> None:
    assert not discover().plugins and not default_registry().plugins


def test_classes_and_plugins_that_are_put_in_are_found(exfm_registry) -> None:
    registry = exfm_registry.put(SoundBackbone, exfm_plugins.backbones)
    assert registry.names("backbone") == ["dlrm", "sound"] == discover().names("backbone")
    assert registry.resolve("backbone", "sound") is SoundBackbone
    assert registry.plugins["dlrm"].status == "loaded"
    assert exfm_registry.put(Shell).names("backbone") == ["dlrm", "shell", "sound"]


def test_a_nested_component_is_looked_up_there(exfm_registry) -> None:
    exfm_registry.put(SoundBackbone)
    assert Shell.Config(inner={"name": "sound"}).inner.component is SoundBackbone
    with pytest.raises(ValueError, match="no backbone is called 'dlrm'"):
        Shell.Config(inner={"name": "dlrm"})


def test_experiments_are_loaded_with_it(exfm_registry, experiment, write) -> None:
    experiment["models"] = {"one": {"backbone": {"name": "shell", "inner": {"name": "sound"}}}}
    path = write(experiment)
    exfm_registry.put(SoundBackbone, Shell, exfm_plugins.sources)
    with pytest.raises(exfm.ConfigError, match="no parallel_plan is called 'single'"):
        exfm.load_experiment(path)
    exfm_registry.put(exfm_plugins.parallel)
    assert exfm.load_experiment(path)


def test_a_plugin_that_cannot_be_loaded_says_why(exfm_registry) -> None:
    registry = exfm_registry.put(SoundBackbone, type("Twin", (SoundBackbone,), {}))
    with pytest.raises(exfm.ConfigError, match=r"'sound' is offered by .* and by "):
        registry.resolve("backbone", "sound")


def test_it_leaves_no_trace() -> None:
    assert default_registry() is default_registry()
    assert "dlrm" in default_registry().names("backbone")
    assert not any(name.startswith("exfm_test_plugin_") for name in sys.modules)


def test_a_project_that_does_not_use_it_does_not_wait_for_torch() -> None:
    check = "import sys, exfm.testing.plugin; sys.exit('torch' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", check]).returncode
