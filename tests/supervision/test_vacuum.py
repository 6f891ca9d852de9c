"""`exfm vacuum` and `exfm du`: files that go, files that stay and for whom, messages for those who come later."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.config.keep_section import KeepConfig
from exfm.config.retention import RetentionRecord
from exfm.diagnosis.diagnose import diagnose
from exfm.experiment.run import start_over
from exfm.interfaces.data_source import Window
from exfm.interfaces.duration import microseconds
from exfm.serving.card_figures import card_figures
from exfm.storage import readers, snapshots
from exfm.storage.backfills import Backfill
from exfm.storage.commits import Commit, CommitLog
from exfm.storage.disk_usage import disk_usage
from exfm.storage.progress import first_kept_window, needed_from_us
from exfm.storage.readers import Readers
from exfm.storage.workspace import LetGoError, Workspace
from exfm.supervision.repair import Ties, find_repair
from exfm.supervision.row_files import backfill_file
from exfm.supervision.store import Store
from exfm.supervision.vacuum import find_vacuum
from tests.supervision.copied_runs import copy_run, vacuum
from tests.supervision.test_retiring import publish
from tests.training.logs import DAYS, experiment_dict, load, make_log, predictions, supervision, write_log

Exfm = Callable[..., Any]
KEEP = {"supervision": 2, "predictions": "3d"}


def experiment(folder: Path, **keep: Any) -> dict[str, Any]:
    """A teacher that keeps little, a student and its control."""
    config = experiment_dict(str(folder / "log"), str(folder / "run"))
    config["evaluation"]["skip"] = 0.0
    config["models"]["fm"] = {"backbone": {"name": "mlp"}, "embedding_dim": 8, "batch_size": 64, "keep": keep or KEEP}
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_log(folder / "log", make_log(rows=600))
    exfm.run(load(folder, experiment(folder)))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of six windows, its log and its file."""
    copy = copy_run(whole, tmp_path / "copy", monkeypatch)
    load(copy, experiment(copy))
    return copy


def files(folder: Path) -> dict[str, str]:
    """Checksums of all files below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def results_of(folder: Path) -> dict[str, Any]:
    """The results that the run's evaluation makes now."""
    return exfm.run(load(folder, experiment(folder)))


def windows(results: dict[str, Any], model: str) -> dict[int, Any]:
    return {window["window"]: window for window in results["models"][model]["tasks"]["click"]["windows"]}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ({}, {"snapshots": 2, "supervision": "all", "predictions": "all"}),
        ({"snapshots": "all", "supervision": 7}, {"snapshots": "all", "supervision": 7, "predictions": "all"}),
        ({"supervision": "1d12h"}, {"snapshots": 2, "supervision": "36h", "predictions": "all"}),
    ],
)
def test_a_count_an_age_or_all(keep: dict[str, Any], expected: dict[str, Any]) -> None:
    section = KeepConfig.model_validate(keep)
    assert section.model_dump(mode="json") == expected | {"full_snapshot_every": 24}
    assert KeepConfig.model_validate(expected) == section


@pytest.mark.parametrize(
    ("value", "message"),
    [(1, "2 at least"), (True, "not True"), ("30", "not '30'"), ("none", "or all, not 'none'"), (-3, "2 at least")],
)
def test_a_wrong_keep_is_named(value: Any, message: str, folder: Path) -> None:
    config = experiment(folder, supervision=value)
    with pytest.raises(exfm.ConfigError, match=rf"models\.fm\.keep\.supervision: .*{message}"):
        load(folder, config)


@given(
    present=st.sets(st.integers(0, 40), min_size=1),
    keep=st.integers(2, 50) | st.just("all") | st.timedeltas(timedelta(0), timedelta(seconds=5)),
)
def test_windows_are_kept_by_number_or_by_age(present: set[int], keep: Any, tmp_path: Path) -> None:
    length = 100_000
    run = tmp_path / hashlib.sha256(repr((sorted(present), keep)).encode()).hexdigest()
    log, previous = CommitLog(Workspace(str(run))), -1
    for index in sorted(present):
        log.add("train", "vm", Commit(Window(index, index * length, (index + 1) * length), {}, {}, previous))
        previous = index
    newest_us = (max(present) + 1) * length
    kept = set(sorted(present)[-keep:]) if isinstance(keep, int) else set(present)
    if isinstance(keep, timedelta):
        young = {index for index in present if (index + 1) * length > newest_us - microseconds(keep)}
        kept = young | set(sorted(present)[-2:])
    first = first_kept_window(log, "train", "vm", keep)
    assert {index for index in present if index >= first} == kept


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (2, [3, 10, 11]),
        (5, [3, 7, 8, 9, 10, 11]),
        (timedelta(microseconds=250), [3, 9, 10, 11]),
        ("all", list(range(12))),
    ],
)
def test_snapshots_are_kept_by_number_or_by_age(
    keep: Any, stay: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    store = Store(str(tmp_path))
    publish(store, 12, needed_us=0)
    store.snapshots.aliases.promote("vm", "production", 3)
    store.snapshots.retire("vm", 1_200, keep)
    assert store.snapshots.versions("vm") == stay


def test_a_teacher_keeps_snapshots_for_a_registered_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    teacher, student = Store(str(tmp_path / "teacher")), Store(str(tmp_path / "student"))
    student.workspace.write("config.yaml", b"")
    teacher.readers.register(student.workspace, "vm", {"far": True, "rows_alone": False})
    publish(teacher, 10, needed_us=teacher.readers.needed_us("vm", 50))
    assert teacher.snapshots.versions("vm") == list(range(10))
    student.log.add("train", "far", Commit(Window(6, 600, 700), {}, {}))
    teacher.snapshots.retire("vm", teacher.readers.needed_us("vm", 50))
    assert teacher.snapshots.versions("vm") == [4, 5, 6, 7, 8, 9]  # 4 ends at 500, before 600 - 50
    shutil.rmtree(tmp_path / "student")
    assert teacher.readers.needed_us("vm", 50) > 10_000
    assert [student.ignored for student in teacher.readers.progress("vm")] == ["its run's folder is gone"] * 2


def test_runs_beside_each_other_are_named_without_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Workspace("student").write("config.yaml", b"")
    Readers(Workspace("teacher")).register(Workspace(str(tmp_path / "student")), "fm", {"vm": False})
    assert [reader.ignored for reader in Readers(Workspace("teacher")).progress("fm")] == [""]
    monkeypatch.chdir("/")
    tmp_path.joinpath("moved").mkdir()
    for name in ("teacher", "student"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert [reader.ignored for reader in Readers(Workspace(str(tmp_path / "moved/teacher"))).progress("fm")] == [""]


def test_a_run_on_the_disk_of_another_machine_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = Readers(Workspace(str(tmp_path / "here" / "teacher")))
    teacher.register(Workspace(str(tmp_path / "there" / "student")), "fm", {"vm": True})
    assert [reader.ignored for reader in teacher.progress("fm")] == ["its run's folder is gone"]
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert [(reader.ignored, reader.from_us) for reader in teacher.progress("fm")] == [("", 0)]
    assert teacher.needed_us("fm", 5) == -5
    assert caplog.text.count("may be on a disk of") == 1
    monkeypatch.setattr(readers, "STALE", timedelta(seconds=-1))
    assert "has not committed for more than" in teacher.progress("fm")[0].ignored


def test_a_student_with_epochs_still_reads_its_first_windows(tmp_path: Path) -> None:
    log, student = CommitLog(Workspace(str(tmp_path))), RetentionRecord(start_us=100, epochs_us=300)
    needed = [needed_from_us(log, "vm", student)]
    for index in range(1, 6):
        log.add(
            "train", "vm", Commit(Window(index, index * 100, index * 100 + 100), {}, {}, index - 1 if index > 1 else -1)
        )
        needed.append(needed_from_us(log, "vm", student))
    # Windows 1 and 2 end by 300; window 3 repeats them, and counts as undone until window 4 is committed.
    assert needed == [100, 100, 100, 100, 400, 500]


def test_a_registration_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "readers").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        Readers(Workspace(str(tmp_path / "teacher"))).register(Workspace(str(tmp_path / "vm")), "fm", {"vm": False})
    assert "cannot be registered as readers of 'fm'" in caplog.text


def test_dry_run_changes_nothing_and_lists_what_goes(folder: Path, exfm_cli: Exfm) -> None:
    before = files(folder)
    outcome = exfm_cli("vacuum", str(folder / "run"), "--dry-run")
    assert outcome.status == 0, outcome.err
    assert files(folder) == before
    assert "would be removed: supervision of fm, 4 files of windows before 4" in outcome.out
    assert "would be removed: predictions of fm, 3 files of windows before 3" in outcome.out
    outcome = exfm_cli("vacuum", str(folder / "run"))
    assert outcome.status == 0, outcome.err
    assert "removed: supervision of fm, 4 files of windows before 4" in outcome.out
    after = files(folder)
    gone = before.keys() - after.keys()
    rows = [path for path in gone if "/snapshots/" not in path]
    assert len(rows) == 7 and all(path.split("/")[2] == "fm" for path in rows)
    assert {path.split("/")[3] for path in gone if "/snapshots/" in path} == {f"{version:06d}" for version in range(4)}
    assert [path for path in after.keys() - before.keys() if not path.startswith("run/vacuum/")] == []
    assert {path: after[path] for path in before.keys() & after.keys()} == {p: before[p] for p in before.keys() - gone}
    assert list(supervision(str(folder / "run"), "fm")) == [4, 5]
    assert list(predictions(str(folder / "run"), "fm")) == [3, 4, 5]
    assert list(predictions(str(folder / "run"), "vm")) == list(range(6))
    assert find_vacuum(Store(str(folder / "run"))).is_empty


def test_results_and_diagnosis_say_what_is_gone(folder: Path) -> None:
    before = results_of(folder)
    vacuum(folder)
    after = results_of(folder)
    assert any("fm: its predictions of windows 0 to 2 (" in note for note in after["notes"])
    # Figures of the windows that are left are as they were, and overall figures of all models cover the same time.
    assert windows(after, "fm") == {index: windows(before, "fm")[index] for index in (3, 4, 5)}
    assert windows(after, "vm") == windows(before, "vm")
    for model in ("fm", "vm", "vm.control"):
        expected = sum(windows(before, model)[index]["examples"] for index in (3, 4, 5))
        assert after["models"][model]["tasks"]["click"]["examples"] == expected
    assert after["gains"][0]["examples"] == after["models"]["vm"]["tasks"]["click"]["examples"]
    covered, expected = after["supervision"]["fm"]["vm"], before["supervision"]["fm"]["vm"]
    assert [covered[key] for key in ("hit_rate", "windows")] == [expected[key] for key in ("hit_rate", "windows")]
    store = Store(str(folder / "run"))
    diagnosis = diagnose(store, after, store.workspace.read("config.yaml").decode())
    assert any("fm: its supervision before window 4 was removed" in sentence for sentence in diagnosis["left_out"])
    assert diagnosis["students"][0]["reach"]["supervised_share"] == 1.0


def test_a_card_says_which_windows_its_figures_lack(folder: Path) -> None:
    loaded, store = load(folder, experiment(folder)), Store(str(folder / "run"))
    fm, snapshot = loaded.arms[0], store.snapshots.get("fm", 5)
    before = card_figures(loaded, store, fm, snapshot)
    vacuum(folder)
    assert card_figures(loaded, store, fm, snapshot) == before  # figures from before the vacuum are whole
    results_of(folder)
    after = card_figures(loaded, store, fm, snapshot)
    assert after.origin.startswith("From the run's results.json. They leave 3 windows out, until 2023-11-17")
    (folder / "run" / "results.json").unlink()
    computed = card_figures(loaded, store, fm, snapshot)
    assert computed.origin.startswith("Computed at export") and computed.origin.endswith(after.origin[27:])
    assert computed.tasks == after.tasks != before.tasks


def test_skip_counts_the_windows_that_are_gone(folder: Path) -> None:
    config = experiment(folder)
    config["evaluation"]["skip"] = 0.6
    scored = exfm.run(load(folder, config))["models"]["vm"]["tasks"]["click"]["examples"]
    vacuum(folder)
    assert exfm.run(load(folder, config))["models"]["vm"]["tasks"]["click"]["examples"] == scored


def test_a_run_goes_on_after_a_vacuum_as_without(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    days = sorted((whole / "log").iterdir())
    (tmp_path / "log").mkdir()
    shutil.copy(days[0], tmp_path / "log")
    shutil.copy(days[1], tmp_path / "log")
    exfm.run(load(tmp_path, experiment(tmp_path)))
    vacuum(tmp_path)
    shutil.copy(days[2], tmp_path / "log")
    results_of(tmp_path)
    for model in ("vm", "vm.control"):
        assert predictions(str(tmp_path / "run"), model) == predictions(str(whole / "run"), model)
    kept, expected = predictions(str(tmp_path / "run"), "fm"), predictions(str(whole / "run"), "fm")
    assert 5 in kept and len(kept) < len(expected)
    assert all(kept[window] == expected[window] for window in kept)


def test_keep_is_free_to_change(folder: Path) -> None:
    config = experiment(folder, predictions="all", supervision="all")
    assert exfm.run(load(folder, config))["notes"] == []
    store = Store(str(folder / "run"))
    assert not any(rows.files for rows in find_vacuum(store).rows)
    exfm.run(load(folder, experiment(folder, predictions=2)))
    gone = {rows.model: len(rows.files) for rows in find_vacuum(store).rows if rows.folder == "predictions"}
    assert gone == {"fm": 4, "vm": 0, "vm.control": 0}


@pytest.mark.parametrize("removals", [0, 2, 5])
def test_a_kill_between_mark_and_removal(removals: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, left = Workspace.remove_file, removals

    def killed(self: Workspace, relative: str) -> None:
        nonlocal left
        if relative.endswith(".parquet"):
            left -= 1
            if left < 0:
                raise InterruptedError
        remove(self, relative)

    monkeypatch.setattr(Workspace, "remove_file", killed)
    with pytest.raises(InterruptedError):
        vacuum(folder)
    monkeypatch.undo()
    store = Store(str(folder / "run"))
    assert find_repair(store, {"fm": Ties(teaches=True), "vm": Ties()}).problems == []
    assert windows(results_of(folder), "fm").keys() == {3, 4, 5}
    vacuum(folder)
    assert list(supervision(str(folder / "run"), "fm")) == [4, 5]
    assert list(predictions(str(folder / "run"), "fm")) == [3, 4, 5]


def test_a_lost_file_is_still_damage(folder: Path) -> None:
    vacuum(folder)
    store = Store(str(folder / "run"))
    ties = {"fm": Ties(teaches=True), "vm": Ties(), "vm.control": Ties()}
    assert find_repair(store, ties).problems == []
    next((folder / "run" / "supervision" / "fm").glob("window-000004-*")).unlink()
    assert "a committed file is missing" in find_repair(store, ties).problems[0]


def test_a_repair_that_goes_back_behind_a_vacuum_runs_all_again(folder: Path, exfm_cli: Exfm) -> None:
    before = windows(results_of(folder), "fm")
    vacuum(folder)
    shutil.rmtree(folder / "run" / "snapshots" / "fm")
    outcome = exfm_cli("repair", str(folder / "run"))
    assert outcome.status == 0 and "goes back: fm to the beginning" in outcome.out
    after = results_of(folder)
    assert windows(after, "fm") == before
    assert not any("removed" in note for note in after["notes"])


def test_a_run_that_starts_over_has_no_marks(folder: Path) -> None:
    vacuum(folder)
    start_over(Store(str(folder / "run")))
    results = results_of(folder)
    assert windows(results, "fm").keys() == set(range(6)) and results["notes"] == []


def test_a_student_that_comes_later_is_told(folder: Path) -> None:
    vacuum(folder)
    config = experiment(folder)
    config["models"]["late"] = copy.deepcopy(config["models"]["vm"]) | {"control": False}
    with pytest.raises(exfm.ConfigError, match=r"has removed the supervision of 'fm' before window 4\. A student"):
        exfm.run(load(folder, config))
    # The draft of the student that has not begun holds all that is left; from the first window that is left on it runs.
    config["models"]["late"]["start"] = str(Store(str(folder / "run")).log.load("train", "fm", 4).window)[:16]
    results = exfm.run(load(folder, config))
    assert windows(results, "late").keys() == {4, 5}


def elsewhere(folder: Path) -> dict[str, Any]:
    """A student in another run, beside the teacher's."""
    config = experiment(folder)
    config["name"], config["run_dir"] = "elsewhere", str(folder / "elsewhere")
    config["teachers"] = {"fm": {"run": str(folder / "run"), "model": "fm"}}
    del config["models"]["fm"]
    return config


def test_a_registered_reader_is_respected(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exfm_cli: Exfm
) -> None:
    config = elsewhere(folder)
    shutil.copytree(folder / "log", tmp_path / "short")
    for later in sorted((tmp_path / "short").iterdir())[1:]:
        later.unlink()
    config["stream"]["source"]["path"] = str(tmp_path / "short")
    exfm.run(load(folder, config))
    head = Store(config["run_dir"]).log.head("train", "vm")
    assert 0 < head < DAYS - 2
    # Moved together, because a run beside it is named by its folder alone.
    (folder / "run").rename(tmp_path / "run")
    (folder / "elsewhere").rename(tmp_path / "elsewhere")
    outcome = exfm_cli("vacuum", str(tmp_path / "run"))
    assert f"stays: supervision of fm from window {head} on, for vm of {tmp_path / 'elsewhere'}" in outcome.out
    assert list(supervision(str(tmp_path / "run"), "fm")) == list(range(head, DAYS))
    monkeypatch.setattr(readers, "STALE", timedelta(seconds=-1))
    outcome = exfm_cli("vacuum", str(tmp_path / "run"), "--dry-run")
    assert "does not count: vm of" in outcome.out and "it has not committed for more than" in outcome.out
    monkeypatch.undo()
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    (tmp_path / "elsewhere").rename(folder / "elsewhere")
    outcome = exfm_cli("vacuum", str(tmp_path / "run"))
    assert "its run's folder is gone" in outcome.out
    assert list(supervision(str(tmp_path / "run"), "fm")) == [4, 5]


def test_a_reader_that_comes_while_the_vacuum_waits_is_respected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def registers(_: float) -> None:
        (folder / "new").mkdir()
        Store(str(folder / "run")).readers.register(Workspace(str(folder / "new")), "fm", {"vm": False})

    monkeypatch.setattr(time, "sleep", registers)
    removed = vacuum(folder)
    assert list(supervision(str(folder / "run"), "fm")) == list(range(6))
    assert list(predictions(str(folder / "run"), "fm")) == [3, 4, 5]
    assert [len(rows.files) for rows in removed.rows if rows.model == "fm"] == [0, 3]
    # The mark is there, and says nothing about files that are.
    results = exfm.run(load(folder, elsewhere(folder)))
    assert windows(results, "vm").keys() == set(range(6))


def test_orphans_and_unneeded_snapshots_go(folder: Path) -> None:
    run = folder / "run"
    path = next((run / "predictions" / "vm").glob("window-000002-*"))
    orphan = path.with_name("window-000002-0123456789ab.parquet")
    shutil.copy(path, orphan)
    uncommitted = path.with_name("window-000099-0123456789ab.parquet")
    shutil.copy(path, uncommitted)
    assert len(list((run / "snapshots" / "vm").iterdir())) > 2
    Store(str(run)).snapshots.aliases.promote("vm", "production", 1)
    vacuum(folder)
    assert not orphan.exists() and uncommitted.exists() and path.exists()
    assert sorted(int(version.name) for version in (run / "snapshots" / "vm").iterdir()) == [1, 4, 5]


def test_rows_of_back_fills_go_with_their_window(folder: Path) -> None:
    store = Store(str(folder / "run"))
    rows = {}
    for window, number in ((1, 0), (1, 1), (5, 0)):
        content = store.workspace.read_checked(store.log.load("supervise", "fm", window).files["rows"])
        rows[window, number] = store.workspace.write(backfill_file("fm", window), content + bytes(number))
        assert store.backfills.add("fm", Backfill(window, rows[window, number], window - 1), number)
    first = store.log.load("supervise", "fm", 1).window
    vacuum(folder)
    assert [key for key, record in rows.items() if store.workspace.exists(record.path)] == [(5, 0)]
    with pytest.raises(LetGoError, match="has removed the supervision of 'fm' before window 4"):
        list(store.supervised_ids("fm", first))
    with pytest.raises(LetGoError, match="has removed the supervision of 'fm' before window 4"):
        store.workspace.check(rows[1, 1])


def test_du_adds_up_every_file(folder: Path, exfm_cli: Exfm) -> None:
    run = folder / "run"
    entries = json.loads(exfm_cli("du", str(run), "--json").out)
    paths = [path for path in run.rglob("*") if path.is_file()]
    assert sum(entry["bytes"] for entry in entries) == sum(path.stat().st_size for path in paths)
    assert sum(entry["files"] for entry in entries) == len(paths)
    by_name = {(entry["model"], entry["kind"]): entry for entry in entries}
    parquet = list((run / "predictions" / "vm").iterdir())
    assert by_name["vm", "predictions"]["files"] == len(parquet) == 6
    assert by_name["vm", "predictions"]["bytes"] == sum(path.stat().st_size for path in parquet)
    assert by_name["fm", "manifests"]["files"] == 12
    assert by_name["vm", "manifests"]["files"] == 6
    assert ("vm", "supervision") not in by_name
    assert by_name["vm.control", "other"]["files"] == 1
    assert "predictions" in exfm_cli("du", str(run)).out
    vacuum(folder)
    usage = {(counted.model, counted.kind): counted for counted in disk_usage(Store(str(run)).workspace)}
    assert usage["fm", "supervision"].files == 2
    assert pq.read_table(next((run / "supervision" / "fm").iterdir())).num_rows > 0
