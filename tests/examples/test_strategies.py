"""The example of a strategy with an embedding and an optimizer: short, sound, and part of a run that resumes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import exfm
import exfm_plugins.backbones
import exfm_plugins.encoders
import exfm_plugins.parallel
import exfm_plugins.sources
from exfm.testing import DistillationStrategyTests
from tests.training.logs import experiment_dict, load, make_log, write_log

FILE = Path(__file__).parents[2] / "examples" / "strategies" / "embedding_reader.py"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("embedding_reader", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Reader = _module().Reader


class TestReader(DistillationStrategyTests):
    component = Reader


def test_it_is_short() -> None:
    assert len(FILE.read_text().splitlines()) < 60


def test_its_corrected_labels_are_in_the_results(tmp_path: Path, exfm_registry: Any) -> None:
    exfm_registry.put(
        Reader,
        exfm_plugins.backbones,
        exfm_plugins.encoders,
        exfm_plugins.sources,
        exfm_plugins.parallel,
    )
    config = experiment_dict(write_log(tmp_path / "log", make_log(600)), str(tmp_path / "run"))
    config["models"]["fm"]["supervision"] = {"embedding": "float16"}
    config["models"]["vm"]["transfer"] = [{"name": "reader", "teacher": "fm"}]
    results = exfm.run(load(tmp_path, config))
    entries = results["supervision"]["fm"]["vm"]["soft_labels"]
    calibration = {entry["label"]: entry["calibration"] for entry in entries}
    assert calibration.keys() == {"teacher", "corrected"} and calibration["teacher"] != calibration["corrected"]
