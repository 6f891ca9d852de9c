"""Examples of data sources: each is valid as it stands, without its data."""

from __future__ import annotations

from pathlib import Path

import pytest

import exfm
from exfm.transfer.build import check_models

FILES = sorted((Path(__file__).parents[2] / "examples" / "data").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_example_is_valid(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=../exfm.schema.json\n")
    experiment = exfm.load_experiment(str(file))
    assert experiment.config.name == file.stem
    assert [arm.name for arm in experiment.arms] == ["fm", "vm", "vm.control"]
    check_models(experiment)
