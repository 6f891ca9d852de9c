"""`exfm repair`: damage is named, a model goes back to before it, and the next run ends as if nothing had been."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import exfm
from exfm.storage import snapshots
from tests.training.logs import differences, experiment_dict, load, make_log, write_log

Exfm = Callable[..., Any]


@dataclass(frozen=True)
class Whole:
    """Holds an undamaged run."""

    config: dict[str, Any]
    results: dict[str, Any]
    run_dir: Path

    def copy(self, folder: Path) -> tuple[Path, exfm.Experiment]:
        """Copies the run, and loads the copy's experiment."""
        shutil.copytree(self.run_dir, folder / "run")
        return folder / "run", load(folder, {**self.config, "run_dir": str(folder / "run")})


def whole_run(folder: Path, change: Callable[[dict[str, Any]], None], keep_s: float) -> Whole:
    config = experiment_dict(write_log(folder / "log", make_log(rows=500)), str(folder / "run"))
    change(config["models"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "READING_S", keep_s)
        return Whole(config, exfm.run(load(folder, config)), folder / "run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole_run(tmp_path_factory.mktemp("whole"), lambda models: None, 60.0)


def only_path(run_dir: Path, pattern: str) -> Path:
    (path,) = run_dir.glob(pattern)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def two_snapshots(run_dir: Path) -> None:
    cut(only_path(run_dir, "snapshots/fm/000005/model-*"))
    only_path(run_dir, "snapshots/fm/000004/training-*").unlink()


def other_examples(run_dir: Path) -> None:
    path = run_dir / "commits/train/vm/000003.json"
    manifest = json.loads(path.read_text())
    manifest["counters"]["examples"] += 1
    path.write_text(json.dumps(manifest))


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    # the damage; the error of a run; the file that repair names; the window that the model goes back to
    "predictions": (
        lambda run: cut(only_path(run, "predictions/vm/window-000003-*")),
        r"predictions/vm/window-000003-\w+\.parquet: corrupt",
        "predictions/vm/window-000003-",
        "vm to after window 2023-11-17",
    ),
    "lost predictions": (
        lambda run: only_path(run, "predictions/vm.control/window-000005-*").unlink(),
        r"predictions/vm.control/window-000005-\w+\.parquet: a committed file is missing",
        "predictions/vm.control/window-000005-",
        "vm.control to after window 2023-11-19",
    ),
    "supervision": (
        lambda run: cut(only_path(run, "supervision/fm/window-000004-*")),
        "",  # its students have read it
        "supervision/fm/window-000004-",
        "fm to after window 2023-11-18",
    ),
    "two snapshots": (two_snapshots, "", "snapshots/fm/000005/model-", "fm to after window 2023-11-18"),
    "half a manifest": (
        lambda run: cut(run / "commits/train/vm/000002.json"),
        r"commits/train/vm/000002\.json: the manifest is missing or damaged, and window 3",
        "commits/train/vm/000002.json: no such commit",
        "vm to after window 2023-11-16",
    ),
    "a lost manifest": (
        lambda run: (run / "commits/train/vm/000002.json").unlink(),
        r"commits/train/vm/000002\.json: the manifest is missing or damaged, and window 3",
        "commits/train/vm: a manifest before that of window 2023-11-18",
        "vm to after window 2023-11-16",
    ),
    "a changed manifest": (
        other_examples,
        r"commits/train/vm/000003\.json: damaged: its content is not what was committed",
        "commits/train/vm/000003.json: damaged",
        "vm to after window 2023-11-17",
    ),
    "lost supervision": (
        lambda run: (run / "commits/supervise/fm/000005.json").unlink(),
        "",
        "commits/supervise/fm: the manifest of window 2023-11-20",
        "fm to after window 2023-11-19",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_run_goes_back_and_ends_as_an_undamaged_one(
    kind: str, whole: Whole, exfm_cli: Exfm, tmp_path: Path
) -> None:
    damage, said, named, back = DAMAGES[kind]
    run_dir, experiment = whole.copy(tmp_path)
    damage(run_dir)
    if said:
        with pytest.raises(exfm.RunError, match=f"{said}.*`exfm repair {run_dir}`"):
            exfm.run(experiment)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    outcome = exfm_cli("repair", str(run_dir), "--dry-run")
    assert (outcome.status, before) == (0, {path: path.read_bytes() for path in before})
    assert named in outcome.out and f"would go back: {back}" in outcome.out
    outcome = exfm_cli("repair", str(run_dir))
    assert outcome.status == 0 and f"goes back: {back}" in outcome.out
    assert "nothing damaged" in exfm_cli("repair", str(run_dir)).out
    assert differences(exfm.run(experiment), whole.results) == []
    assert "nothing damaged" in exfm_cli("repair", str(run_dir)).out


def test_a_whole_run_is_left_alone_and_files_of_nobody_go(whole: Whole, exfm_cli: Exfm, tmp_path: Path) -> None:
    run_dir, _ = whole.copy(tmp_path)
    stray = only_path(run_dir, "predictions/vm/window-000001-*").with_name("window-000001-0123456789ab.parquet")
    stray.write_bytes(b"")
    before = sorted(run_dir.rglob("*"))
    outcome = exfm_cli("repair", str(run_dir))
    assert "nothing damaged" in outcome.out and "removed: 1 files that no manifest names" in outcome.out
    assert sorted(run_dir.rglob("*")) == [path for path in before if path != stray]


def test_no_run_is_an_error(exfm_cli: Exfm, tmp_path: Path) -> None:
    outcome = exfm_cli("repair", str(tmp_path))
    assert outcome.status == 2 and "no config.yaml here" in outcome.err


def tied(models: dict[str, Any]) -> None:
    """Lets a teacher label a day late and share its tables with its student, so that both read its snapshots."""
    models["fm"]["supervision"] = {"delay": "1d"}
    sharing = {"name": "parameter_sharing", "teacher": "fm", "parts": {"table/user": "added"}}
    models["vm"] |= {"transfer": [*models["vm"]["transfer"], sharing], "control": False}


@pytest.mark.parametrize("pattern", ["predictions/vm/window-000001-*", "supervision/fm/window-000003-*"])
def test_those_whose_snapshots_are_needed_again_go_back_too(
    pattern: str, exfm_cli: Exfm, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = whole_run(tmp_path_factory.mktemp("tied"), tied, 0.0)
    run_dir, experiment = whole.copy(tmp_path)
    assert not (run_dir / "snapshots/fm/000000").exists()
    cut(only_path(run_dir, pattern))
    outcome = exfm_cli("repair", str(run_dir))
    assert outcome.status == 0 and "goes back: fm to the beginning" in outcome.out
    assert differences(exfm.run(experiment), whole.results) == []
