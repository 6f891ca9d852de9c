"""`exfm report` writes the page of a finished run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import exfm
from exfm.cli.main import app

EXPERIMENT = """
name: small
stream:
  source: {name: synthetic_ads, days: 1, rows_per_day: 600, users: 50, ads: 40}
  window: 12h
evaluation: {replicates: 100}
models:
  fm:
    backbone: {name: wukong, layers: 1}
  vm:
    backbone: {name: dlrm}
    features: [user_id, ad_id]
    transfer:
      - {name: auxiliary_head, teacher: fm}
    control: true
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "small.yaml").write_text(EXPERIMENT, encoding="utf-8")
    exfm.run(exfm.load_experiment(str(folder / "small.yaml"), [f"run_dir={folder / 'run'}"]))
    return folder / "run"


def test_the_page_is_the_same_to_the_byte(run_dir: Path) -> None:
    page = run_dir / "report.html"
    written_by_the_run = page.read_bytes()
    page.unlink()
    result = CliRunner().invoke(app, ["report", str(run_dir)])
    assert result.exit_code == 0, result.output
    assert page.read_bytes() == written_by_the_run


def test_every_model_stands_next_to_its_bayes_limit(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert text.count(">above Bayes</th>") == 2
    for model in ("fm", "vm", "vm.control"):
        assert f'<th scope="row">{model}</th>' in text


def test_a_folder_without_a_finished_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(exfm.ConfigError, match=r"no results\.json and no config\.yaml here"):
        CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
