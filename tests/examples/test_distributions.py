"""The third-party distributions under examples/: built as wheels, installed in a fresh environment, and run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALLER = {
    "rankmixer": ["stream.source.days=2", "stream.source.rows_per_day=1000"],
    "jsonl": ["stream.window=2d"],
}
KINDS = {"rankmixer": "backbone", "jsonl": "data_source"}


@pytest.fixture(scope="module")
def installed(environment, tmp_path_factory) -> Path:
    """Where the distributions lie without their packages; these are installed from their wheels."""
    folder = tmp_path_factory.mktemp("distributions")
    for name in KINDS:
        junk = shutil.ignore_patterns("runs", "__pycache__", ".*_cache", "dist")
        shutil.copytree(EXAMPLES / f"exfm-plugin-{name}", folder / f"exfm-plugin-{name}", ignore=junk)
    sources = [str(folder / f"exfm-plugin-{name}") for name in KINDS]
    environment.check("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "wheels"), *sources)
    wheels = sorted(str(wheel) for wheel in (folder / "wheels").iterdir())
    assert [Path(wheel).name for wheel in wheels] == [
        f"exfm_plugin_{name}-0.1.0-py3-none-any.whl" for name in sorted(KINDS)
    ]
    environment.check("pip", "install", "--quiet", *wheels)
    for name in KINDS:
        shutil.rmtree(folder / f"exfm-plugin-{name}" / f"exfm_plugin_{name}")
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_it_is_found_and_its_experiment_runs(name, installed, environment, tmp_path):
    shown = environment.check("exfm", "plugins")
    assert f"{KINDS[name]}.{name}" in next(line for line in shown.splitlines() if f"exfm-plugin-{name} " in line)
    run = tmp_path / "run"
    project = installed / f"exfm-plugin-{name}"
    environment.check("exfm", "run", f"examples/{name}.yaml", f"run_dir={run}", *SMALLER[name], cwd=project)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    for model in results["models"].values():
        assert model["examples"] > 0 and all(task["log_loss"] < 1 for task in model["tasks"].values())
    assert f"exfm-plugin-{name}" in (run / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.soak  # the kit runs on the components of this repository in every change
@pytest.mark.parametrize("name", KINDS)
def test_its_own_tests_pass(name, installed, environment):
    told = environment.check("pytest", "-q", "-p", "no:cacheprovider", cwd=installed / f"exfm-plugin-{name}")
    assert " passed" in told and "failed" not in told
