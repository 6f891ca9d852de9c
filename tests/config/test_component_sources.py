"""Tests the hash of a component's code: it follows the files, and a run keeps the hash of its beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from omegaconf import OmegaConf

import exfm
from exfm.config.component_sources import changed_components, component_hashes
from exfm.scheduling.identity import open_run
from exfm.supervision.store import Store

MODULE = """
from typing import ClassVar
import exfm
from torch import nn
from helper import WIDTH

class Thin(exfm.Backbone):
    '''Adds all tokens up.'''
    name: ClassVar[str] = "thin"
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.output_dim = inputs.dim
    def forward(self, tokens_BND, sequences):
        return tokens_BND.sum(dim=1)
"""


def kept(experiment: exfm.Experiment) -> dict[str, Any]:
    """Reads config.yaml of a run."""
    content = OmegaConf.to_container(OmegaConf.load(Path(experiment.run_dir) / "config.yaml"))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@pytest.fixture
def folder(plugins: Any) -> Path:
    """Installs a plugin that is a package of two modules."""
    package = plugins.path / "thin_plugin"
    package.mkdir()
    source = MODULE.replace("from helper", "from thin_plugin.helper")
    offer = "exfm.LazyComponent('thin', 'thin_plugin.model:Thin')"
    hook = f"import exfm\n\n@exfm.hookimpl\ndef exfm_register_backbones():\n    return [{offer}]\n"
    (package / "__init__.py").write_text(hook, encoding="utf-8")
    (package / "model.py").write_text(source, encoding="utf-8")
    (package / "helper.py").write_text("WIDTH = 3\n", encoding="utf-8")
    plugins.add_distribution("thin-plugin", "[exfm]\nthin_plugin = thin_plugin\n")
    return Path(package)


def test_a_run_keeps_the_hashes_of_its_first_code(folder: Path, experiment: Any, write: Any, tmp_path: Path) -> None:
    experiment["models"] = {"vm": {"backbone": {"name": "thin"}, "tasks": ["click"]}}
    experiment["stream"]["source"] |= {"days": 1, "rows_per_day": 100}
    experiment |= {"run_dir": str(tmp_path / "run"), "evaluation": {"replicates": 100}}
    loaded = exfm.load_experiment(write(experiment))
    exfm.run(loaded)
    begun = kept(loaded)
    assert begun["components"].keys() == {"backbone.thin", "data_source.synthetic_ads", "parallel_plan.single"}
    assert changed_components(loaded, begun) == []
    (folder / "helper.py").write_text("WIDTH = 4\n", encoding="utf-8")
    again = exfm.load_experiment(write(experiment))
    open_run(again, Store(again.run_dir))
    assert changed_components(again, kept(again)) == ["backbone.thin"], "also after it was resumed with other code"
    assert kept(again)["components"] == begun["components"]
    assert changed_components(again, {"versions": {}}) == [], "a run of an exfm that did not write hashes"


def backbone(body: str) -> type[exfm.Backbone]:
    """Defines a class without a file, as a notebook does."""
    space: dict[str, Any] = {"exfm": exfm, "ClassVar": ClassVar, "__name__": "no_such_module"}
    exec(MODULE.replace("from helper import WIDTH\n", "").replace("tokens_BND.sum(dim=1)", body), space)
    defined = space["Thin"]
    assert isinstance(defined, type) and issubclass(defined, exfm.Backbone)
    return defined


def test_a_class_without_a_file_is_known_by_its_functions(experiment: Any, write: Any) -> None:
    experiment["models"]["vm"]["backbone"] = {"name": "thin"}
    file = write(experiment)

    def hashed(body: str) -> str:
        return component_hashes(exfm.load_experiment(file, components=[backbone(body)]))["backbone.thin"]

    assert hashed("tokens_BND.sum(dim=1)") == hashed("tokens_BND.sum(dim=1)")
    assert hashed("tokens_BND.sum(dim=1)") != hashed("tokens_BND.mean(dim=1)")
