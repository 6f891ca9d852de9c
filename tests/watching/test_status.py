"""`exfm status`: figures of the results, planted problems within a look, any store, and no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from exfm.storage.workspace import Workspace
from exfm.watching.run_status import RunWatch
from tests.watching.planted import PLANTED, go_back, record, to_memory

Exfm = Callable[..., Any]


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def look(url: object, later: timedelta = timedelta()) -> dict[str, Any]:
    watch = RunWatch(str(url))
    status = watch.look(datetime.now(UTC) + later)
    watch.close()
    return status


def by_model(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["model"]: entry for entry in status["models"]}


def test_the_status_of_a_complete_run_has_the_figures_of_its_results(whole: Path) -> None:
    status = look(whole, timedelta(days=3))
    assert (status["problems"], status["has_results"], status["has_report"]) == ([], True, True)
    results = json.loads((whole / "results.json").read_text())
    models = by_model(status)
    assert list(models) == ["fm", "vm", "vm.control"]
    for name, entry in models.items():
        windows = results["models"][name]["tasks"]["click"]["windows"]
        task = entry["tasks"]["click"]
        assert task["ne"] == pytest.approx(windows[-1]["ne"]) and task["ne_before"] == pytest.approx(windows[-2]["ne"])
        assert (entry["window"]["index"], entry["lag_windows"], entry["lag_s"]) == (5, 0, 0.0)
        assert (entry["compared_with"]["index"], entry["state"], entry["job"]) == (4, "done", "run")
        assert entry["snapshot"] == {"in_use": 5, "newest": 5, "held": {}}
    newest = results["supervision"]["fm"]["vm"]["windows"][-1]
    assert models["vm"]["supervision"]["fm"] == {
        "hit_rate": newest["hit_rate"], "age_s": pytest.approx(newest["age_s"]), "behind_windows": 0
    }  # fmt: skip
    assert (models["fm"]["students"], models["vm"]["control"], models["vm"]["students"]) == (["vm"], "vm.control", [])
    assert (models["fm"]["labelled"]["index"], models["vm"]["labelled"]) == (5, None)
    assert [job["job"] for job in status["jobs"]] == ["run"] and status["jobs"][0]["rows"] == 600


@pytest.mark.parametrize("kind", PLANTED)
def test_a_look_shows_a_planted_problem(kind: str, run: Path, exfm_cli: Exfm) -> None:
    plant, model, problem, text = PLANTED[kind]
    watch = RunWatch(str(run))
    assert watch.look()["problems"] == []
    plant(Workspace(str(run)))
    later = datetime.now(UTC) + timedelta(minutes=30)
    (shown,) = [entry for entry in watch.look(later)["problems"] if entry["model"] == model]
    assert shown["kind"] == problem and shown["text"].startswith(text)
    assert problem in by_model(watch.look(later))[model]["problems"]
    watch.close()
    if problem != "stalled":  # the command looks now, when the teacher's silence is young
        printed = exfm_cli("status", str(run))
        assert printed.status == 0 and f"\n{problem}: {model}" in printed.out and text[:20] in printed.out
        assert json.loads(exfm_cli("status", str(run), "--json").out)["problems"][0]["kind"] == problem


def test_a_slow_window_that_moves_is_no_standstill(run: Path) -> None:
    workspace = Workspace(str(run))
    go_back(workspace, "train", "vm", 1)
    now = datetime.now(UTC)
    begun = (now - timedelta(hours=1)).isoformat()
    lately = (now + timedelta(minutes=9, seconds=30)).isoformat()
    for moved, expected in ((lately, []), (begun, ["stalled"]), ("", ["stalled"])):
        record(workspace, "train", "vm", started=begun, moved=moved)
        status = look(run, timedelta(minutes=10))
        assert [problem["kind"] for problem in status["problems"]] == expected


def test_a_new_job_ends_the_alarm_and_a_run_at_rest_raises_none(run: Path) -> None:
    workspace = Workspace(str(run))
    record(workspace, "train", "vm", "vm.control", state="failed", error="full")
    record(workspace, "run", "fm", "vm", "vm.control", started="2100-01-01T00:00:00+00:00")
    assert look(run)["problems"] == [] and by_model(look(run))["vm"]["state"] == "running"
    # A job that is alive counts, although another has failed since.
    record(workspace, "train", "vm", "vm.control", state="failed", started="2101-01-01T00:00:00+00:00")
    assert look(run)["problems"] == [] and by_model(look(run))["vm"]["job"] == "run fm"
    shutil.rmtree(run / "jobs")
    for model in ("fm", "vm", "vm.control"):
        go_back(workspace, "train", model, 2)
    go_back(workspace, "supervise", "fm", 2)
    assert look(run, timedelta(days=9))["problems"] == []


def test_a_student_of_another_run_is_seen_behind_its_teacher_there(run: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(run, student)
    (student / "homes.json").write_text(json.dumps({"fm": {"run": str(run), "model": "fm"}}))
    shutil.rmtree(student / "commits" / "supervise")
    go_back(Workspace(str(student)), "train", "vm", 3)
    fm = by_model(look(student))["fm"]
    assert (fm["trained_in"], fm["state"], fm["labelled"]["index"]) == (str(run), "done", 5)
    assert by_model(look(student))["vm"]["supervision"]["fm"]["behind_windows"] == 3


def test_a_damaged_manifest_is_a_problem_of_its_model_alone(run: Path) -> None:
    path = run / "commits" / "train" / "vm" / "000005.json"
    path.write_text(path.read_text().replace('"examples"', '"example"', 1))
    (problem,) = look(run)["problems"]
    assert (problem["model"], problem["kind"]) == ("vm", "unreadable") and "damaged" in problem["text"]
    assert by_model(look(run))["fm"]["window"]["index"] == 5


def test_any_store_and_no_run(whole: Path, exfm_cli: Exfm) -> None:
    to_memory(whole, "memory://watched/run")
    stored, here = look("memory://watched/run"), look(whole)
    assert {**stored, "run": "", "jobs": [], "at": ""} == {**here, "run": "", "jobs": [], "at": ""}
    nothing = exfm_cli("status", "memory://watched/nothing")
    assert nothing.status == 2 and "no config.yaml here" in nothing.err
    assert "secret" not in exfm_cli("status", "memory://user:secret@watched/none").err


def test_status_needs_no_torch_and_watches(whole: Path) -> None:
    code = (
        "import sys; from exfm.cli.main import main; from exfm.watching.run_status import RunWatch\n"
        "looks = []\n"
        "look = RunWatch.look\n"
        "def counted(self):\n"
        "    looks.append(1)\n"
        "    if len(looks) > 2: raise KeyboardInterrupt\n"
        "    return look(self)\n"
        "RunWatch.look = counted\n"
        f"sys.argv = ['exfm', 'status', {str(whole)!r}, '--json', '--watch', '--every', '0.1']\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["models"] == second["models"] and first["format"] == 1
