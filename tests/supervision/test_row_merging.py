"""A vacuum merges small row files: every reader has equal rows before, meanwhile and after, and files stay few."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm
from exfm.diagnosis.diagnose import diagnose
from exfm.errors import RunError
from exfm.storage.workspace import Workspace
from exfm.supervision import row_merging
from exfm.supervision.row_files import RowWriter, predictions_schema, row_file
from exfm.supervision.row_merging import CommittedRows, apply_merge, find_merges
from exfm.supervision.store import Store
from exfm.supervision.stored_rows import read_rows
from exfm.supervision.vacuum import find_vacuum
from tests.supervision.copied_runs import copy_run, vacuum
from tests.training.logs import experiment_dict, load, make_log, timeless, train, write_log

Exfm = Callable[..., Any]
WINDOWS = 24


def experiment(folder: Path, run_dir: Path | None = None, **keep: Any) -> dict[str, Any]:
    """A teacher that stores embeddings, a student and its control, in windows of six hours."""
    config = experiment_dict(str(folder / "log"), str(run_dir or folder / "run"))
    config["stream"]["window"] = "6h"
    config["models"]["fm"] = {"backbone": {"name": "mlp"}, "embedding_dim": 8, "batch_size": 64}
    config["models"]["fm"] |= {"keep": keep, "supervision": {"embedding": "float16", "store": True}}
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_log(folder / "log", make_log(rows=720))
    exfm.run(load(folder, experiment(folder)))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of 24 windows, its log and its file."""
    copy = copy_run(whole, tmp_path / "copy", monkeypatch)
    load(copy, experiment(copy))
    return copy


def files(folder: Path, kind: str, model: str) -> list[str]:
    return sorted(path.name for path in (folder / "run" / kind / model).glob("*.parquet"))


def content(folder: Path) -> dict[tuple[str, str, int], pa.Table]:
    """All rows of a run, by folder, model and window, as its readers get them."""
    store = Store(str(folder / "run"))
    tables: dict[tuple[str, str, int], pa.Table] = {}
    for model in ("fm", "vm", "vm.control"):
        for window in store.windows(model):
            tables["predictions", model, window.index] = store.predictions(model, window)
            for record in store.supervision_files(model, window):
                tables["supervision", model, window.index] = read_rows(store.workspace, record)
    return tables


def outside(folder: Path, kind: str, model: str) -> list[tuple[int, int]]:
    """Window and id of each row that a reader of the Parquet folder meets."""
    table = pq.read_table(folder / "run" / kind / model, columns=["window", "example_id"])
    return sorted(zip(table["window"].to_pylist(), table["example_id"].to_pylist(), strict=True))


def test_every_reader_has_equal_rows_in_fewer_files(folder: Path, exfm_cli: Exfm) -> None:
    before, results = content(folder), exfm.run(load(folder, experiment(folder)))
    rows = {(kind, model): outside(folder, kind, model) for kind, model, _ in before}
    store, page = Store(str(folder / "run")), (folder / "run" / "config.yaml").read_text()
    diagnosis = diagnose(store, results, page)
    done = vacuum(folder)
    assert {(merge.folder, merge.model) for merge in done.merged} == rows.keys()
    assert find_vacuum(Store(str(folder / "run"))).is_empty
    for (kind, model), expected in rows.items():
        assert len(files(folder, kind, model)) == 1 + row_merging.NEWEST
        assert outside(folder, kind, model) == expected and len(set(expected)) == len(expected)
    assert content(folder) == before
    assert timeless(exfm.run(load(folder, experiment(folder)))) == timeless(results)
    assert diagnose(Store(str(folder / "run")), results, page) == diagnosis
    assert "nothing damaged" in exfm_cli("repair", str(folder / "run"), "--dry-run").out
    supervision = [usage for usage in du(folder, exfm_cli) if (usage["model"], usage["kind"]) == ("fm", "supervision")]
    assert [usage["files"] for usage in supervision] == [1 + row_merging.NEWEST]


def du(folder: Path, exfm_cli: Exfm) -> list[dict[str, Any]]:
    usage: list[dict[str, Any]] = json.loads(exfm_cli("du", str(folder / "run"), "--json").out)
    return usage


@pytest.mark.soak
def test_students_that_come_later_learn_the_same(folder: Path, tmp_path: Path) -> None:
    """A student of the run and a student elsewhere read merged supervision as the first student read small files."""
    vacuum(folder)
    config = experiment(folder)
    config["models"]["late"] = {**copy.deepcopy(config["models"]["vm"]), "control": False}
    train(load(folder, config))
    elsewhere = experiment(folder, tmp_path / "far")
    elsewhere["name"], elsewhere["teachers"] = "far", {"fm": {"run": str(folder / "run"), "model": "fm"}}
    del elsewhere["models"]["fm"]
    train(load(folder, elsewhere))
    store, far = Store(str(folder / "run")), Store(str(tmp_path / "far"))
    for window in store.windows("vm"):
        expected = store.predictions("vm", window)
        assert store.predictions("late", window) == far.predictions("vm", window) == expected


def test_dry_run_changes_nothing(folder: Path, exfm_cli: Exfm) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    out = exfm_cli("vacuum", str(folder / "run"), "--dry-run").out
    assert "would be merged: supervision of fm, 16 files of windows 0 to 15" in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "merged: supervision of fm, 16 files of windows 0 to 15" in exfm_cli("vacuum", str(folder / "run")).out


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    "step", [step if step % 18 == 0 else pytest.param(step, marks=pytest.mark.soak) for step in range(0, 90, 6)]
)
def test_a_kill_at_any_point(step: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before any step that changes the folder, readers have all rows, and the next vacuum goes on."""
    before, left = content(folder), [step]

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return change(*args)

        return call

    with monkeypatch.context() as patch:
        for name in ("remove_file", "create", "writing"):
            patch.setattr(Workspace, name, dying(getattr(Workspace, name)))
        with pytest.raises(KilledError):
            vacuum(folder)
    assert content(folder) == before
    vacuum(folder)
    vacuum(folder)  # a record without its file needs a look more
    assert find_vacuum(Store(str(folder / "run"))).is_empty
    assert content(folder) == before
    for kind, model in {(kind, model) for kind, model, _ in before}:
        rows = outside(folder, kind, model)
        assert len(set(rows)) == len(rows) == 720 and len(files(folder, kind, model)) == 1 + row_merging.NEWEST


def merged_file(folder: Path, kind: str, model: str) -> Path:
    (path,) = (folder / "run" / kind / model).glob("merged-*")
    return path


def test_damage_of_a_merged_file_is_found(folder: Path, exfm_cli: Exfm) -> None:
    vacuum(folder)
    path = merged_file(folder, "predictions", "vm")
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # of the first window
    path.write_bytes(data)
    store = Store(str(folder / "run"))
    first, second = store.windows("vm")[:2]
    with pytest.raises(RunError, match=r"corrupt.*exfm repair"):
        store.predictions("vm", first)
    assert store.predictions("vm", second).num_rows  # only its own bytes are read
    outcome = exfm_cli("repair", str(folder / "run"), "--dry-run").out
    assert "damaged: " in outcome and "vm to the beginning" in outcome
    path.unlink()
    with pytest.raises(RunError, match="a committed file is missing"):
        store.predictions("vm", second)


def test_a_repaired_run_has_each_row_once(folder: Path, exfm_cli: Exfm) -> None:
    vacuum(folder)
    before = content(folder)
    merged_file(folder, "supervision", "fm").unlink()
    assert exfm_cli("repair", str(folder / "run")).status == 0
    train(load(folder, experiment(folder)))
    assert content(folder) == before
    vacuum(folder)
    vacuum(folder)
    assert find_vacuum(Store(str(folder / "run"))).is_empty and content(folder) == before
    for kind, model in {(kind, model) for kind, model, _ in before}:
        rows = outside(folder, kind, model)
        assert len(set(rows)) == len(rows) == 720


def test_a_merged_file_goes_with_its_last_window(folder: Path) -> None:
    vacuum(folder)
    config = experiment(folder, supervision=10, predictions=9)
    train(load(folder, config))
    assert not vacuum(folder).merging["supervision", "fm"].replaced  # window 14 and 15 stay
    assert merged_file(folder, "supervision", "fm").exists()
    train(load(folder, experiment(folder, supervision=8, predictions=8)))
    vacuum(folder)
    vacuum(folder)
    for kind in ("supervision", "predictions"):
        assert len(files(folder, kind, "fm")) == 8
        assert not list((folder / "run" / "vacuum" / kind / "fm").glob("merged-*"))
    store = Store(str(folder / "run"))
    assert [window.index for window in store.windows("fm")] == list(range(16, 24))
    assert find_vacuum(store).is_empty


SCHEMA = predictions_schema(["click"], [])


def write_window(workspace: Workspace, window: int, rows: int, seed: int) -> CommittedRows:
    """Writes a window's predictions, some of which are not known."""
    random = np.random.default_rng([window, seed])
    writer = RowWriter(workspace, row_file("predictions", "vm", window), SCHEMA)
    predicted = random.random(rows).astype(np.float32)
    predicted[random.random(rows) < 0.1] = np.nan
    writer.append(
        {
            "example_id": random.integers(0, 2**62, rows),
            "window": np.full(rows, window, np.int32),
            "group": random.integers(0, 9, rows),
            "prediction_click": predicted,
            "label_click": random.integers(0, 2, rows).astype(np.float32),
        }
    )
    return CommittedRows(window, writer.close())


@pytest.fixture(scope="module", params=["disk", "memory"])
def new_workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Workspace]:
    """Makes empty workspaces on a disk, or in a store without renames."""

    def make() -> Workspace:
        folder = tmp_path_factory.mktemp("workspace")
        return Workspace(str(folder) if request.param == "disk" else f"memory://{folder}")

    return make


def tidy(workspace: Workspace, rows: list[CommittedRows]) -> None:
    """Merges and removes as a vacuum does, without waiting for readers."""
    for merge in find_merges(workspace, "predictions", "vm", rows, 0, rows[-1].window).merges:
        apply_merge(workspace, merge)
    find_merges(workspace, "predictions", "vm", rows, 0, rows[-1].window).remove(workspace)


def ids_of_readers(workspace: Workspace, rows: list[CommittedRows]) -> list[int]:
    ids: list[int] = []
    for entry in rows:
        ids += read_rows(workspace, entry.record)["example_id"].to_pylist()
    return ids


def ids_of_the_folder(workspace: Workspace) -> list[int]:
    ids: list[int] = []
    for name in workspace.names("predictions/vm"):
        ids += pq.read_table(BytesIO(workspace.read(f"predictions/vm/{name}")))["example_id"].to_pylist()
    return ids


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 400)), min_size=3, max_size=20),
    st.integers(1, 3),
    st.integers(0, 1_000),
)
@settings(max_examples=10)
def test_files_stay_few_whatever_comes(
    new_workspace: Callable[[], Workspace], rounds: list[tuple[int, int]], back: int, seed: int
) -> None:
    """Rounds of new windows and a vacuum, between which a model goes back some windows and writes other rows."""
    folder, rows, small = new_workspace(), list[CommittedRows](), 9_000
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SMALL": small, "LARGE": 20_000, "MANY": 4, "NEWEST": 2}.items():
            patch.setattr(row_merging, name, value)
        for number, (count, size) in enumerate(rounds):
            if number % 4 == 3:
                for gone in rows[-4 * back :]:
                    folder.remove_file(gone.record.path)  # a repair lets the file of a window go that runs again
                rows = rows[: -4 * back]
            for _ in range(count):
                window = rows[-1].window + 1 if rows else 0
                rows.append(write_window(folder, window, size, seed + number))
            before = ids_of_readers(folder, rows)
            tidy(folder, rows)
            tidy(folder, rows)
            assert ids_of_readers(folder, rows) == before
            seen = ids_of_the_folder(folder)
            assert set(before) <= set(seen) and len(set(seen)) == len(seen)
            # Between two files that are large, or are the largest that their windows allow, are few small.
            larges = sum(entry.record.bytes for entry in rows) // small
            assert len(folder.names("predictions/vm")) <= 4 * (larges + 2) + 2
        # As soon as the model is past the windows that it has repeated, no other rows of theirs are left.
        for _ in range(16):
            rows.append(write_window(folder, rows[-1].window + 1, 10, seed))
        tidy(folder, rows)
        tidy(folder, rows)
        assert sorted(ids_of_the_folder(folder)) == sorted(ids_of_readers(folder, rows))
        assert find_merges(folder, "predictions", "vm", rows, 0, rows[-1].window).is_empty
