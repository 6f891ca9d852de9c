"""Streams that grow, are cut and written again between the calls of a job: each row is read once, or counted."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import exfm
from exfm.bookkeeping.progress import Progress
from exfm.scheduling.identity import open_run
from exfm.storage.late_log import LateLog
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from tests.training.logs import START_US, load

HOUR_US = 3_600_000_000


def rows(ids: list[int], hours: list[float]) -> pa.Table:
    """Impressions at some hours after the start."""
    number = np.array(ids, np.int64)
    time = START_US + (np.array(hours) * HOUR_US).astype(np.int64)
    return pa.table(
        {
            "example_id": number,
            "event_time": pa.array(time, pa.timestamp("us", "UTC")),
            "user": number % 7,
            "click": (number % 3 == 0).astype(np.int8),
        }
    )


def config_of(folder: Path, window: str = "1d", **models: Any) -> dict[str, Any]:
    """Configures a teacher and a student of a single feature over ``folder / data``."""
    fast = {"backbone": {"name": "mlp", "hidden": [4]}, "embedding_dim": 4, "batch_size": 64}
    vm = {**fast, "transfer": [{"name": "direct", "teacher": "fm"}]}
    return {
        "name": "growing",
        "run_dir": str(folder / "run"),
        "stream": {
            "window": window,
            "source": {
                "name": "parquet",
                "path": str(folder / "data"),
                "labels": [{"name": "click"}],
                "features": [{"name": "user", "kind": "categorical", "rows": 16}],
            },
        },
        "models": {"fm": fast, "vm": vm} | models,
    }


@dataclass
class Jobs:
    """Calls jobs over a folder as a scheduler does, each time anew."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "data").mkdir()
        self.config = self.config or config_of(self.folder)

    def add(self, name: str, table: pa.Table) -> None:
        pq.write_table(table, self.folder / "data" / f"{name}.parquet", row_group_size=5)

    def remove(self, name: str) -> None:
        (self.folder / "data" / f"{name}.parquet").unlink()

    def call(self, *models: str, final: bool = False, stop_after: int | None = None, **overrides: Any) -> StreamLoop:
        """Trains models as far as it goes; an interruption stops it after some chunks."""
        experiment = load(self.folder, self.config, *(f"{key}={value}" for key, value in overrides.items()))
        store = Store(experiment.run_dir)
        open_run(experiment, store)
        left = stop_after

        def on_progress(_: Progress) -> None:
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt

        loop = StreamLoop(experiment, store, experiment.config.parallel.build(), on_progress, models, ())
        loop.advance(complete_windows_only=not final)
        return loop

    def predicted(self, model: str) -> list[int]:
        """The examples that a model was scored on, in the order of its commits."""
        store = Store(self.config["run_dir"])
        tables = [store.predictions(model, window) for window in store.windows(model)]
        return [example for table in tables for example in table.column("example_id").to_pylist()]

    def starts(self, model: str) -> list[float]:
        """The first hours of the windows that a model has committed."""
        return [(window.start_us - START_US) / HOUR_US for window in Store(self.config["run_dir"]).windows(model)]

    def late(self, model: str) -> dict[str, int]:
        """The rows that came late for a model, by file."""
        total: dict[str, int] = {}
        for late in LateLog(Store(self.config["run_dir"]).workspace).all(model):
            for name, count in late.rows.items():
                total[Path(name).stem] = total.get(Path(name).stem, 0) + count
        return total


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def day(number: int, first: int = 0, step: float = 2.0) -> pa.Table:
    """Twelve rows of a day, ids from ``100 * number`` on."""
    return rows([100 * number + i for i in range(first, 12)], [24 * number + step * i for i in range(first, 12)])


def test_the_window_that_the_newest_row_lies_in_waits_for_a_later_call(jobs: Jobs) -> None:
    jobs.add("a", pa.concat_tables([day(0), day(1).slice(0, 6)]))
    loop = jobs.call("fm")
    assert (jobs.starts("fm"), str(loop.incomplete)) == ([0.0], "2023-11-16T00:00:00Z")
    jobs.add("b", pa.concat_tables([day(1).slice(6), day(2)]))
    jobs.call("fm")
    assert jobs.predicted("fm") == [*range(12), *range(100, 112)]
    jobs.call("fm", final=True)
    assert jobs.predicted("fm")[24:] == list(range(200, 212))
    assert jobs.late("fm") == {}
    assert jobs.call("fm").incomplete is None


def test_a_log_that_loses_its_oldest_file_goes_on_with_its_newest(jobs: Jobs) -> None:
    for number in range(4):
        jobs.add(str(number), day(number))
    jobs.call("fm", "vm", final=True)
    jobs.remove("0")
    jobs.add("4", day(4))
    jobs.call("fm", "vm", final=True)
    for model in ("fm", "vm"):
        assert jobs.starts(model) == [0.0, 24.0, 48.0, 72.0, 96.0]
        assert jobs.predicted(model) == [100 * number + i for number in range(5) for i in range(12)]


def test_an_older_day_is_refused_and_may_be_left_out(jobs: Jobs) -> None:
    for number in (2, 3):
        jobs.add(str(number), day(number))
    jobs.call("fm", final=True)
    jobs.add("1", day(1))
    with pytest.raises(
        exfm.ConfigError, match=r"begins at 2023-11-16T00:00:00Z now \(.*/1\.parquet\), before the run's"
    ):
        jobs.call("fm", final=True)
    jobs.add("4", day(4))
    later: dict[str, Any] = {"stream.start": "2023-11-17T00:00:00Z"}
    jobs.call("fm", final=True, **later)
    assert jobs.predicted("fm") == [100 * number + i for number in (2, 3, 4) for i in range(12)]


def test_rows_that_come_after_their_window_are_named_once_and_counted(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.add("a", day(0))
    jobs.add("c", pa.concat_tables([day(1).slice(3), day(2)]))
    jobs.call("fm", "vm", final=True)
    jobs.add("b", day(1).slice(0, 3))
    jobs.call("fm", "vm", final=True)
    assert "fm: 3 rows of window 2023-11-16T00:00:00Z have come after it was committed, and are not read" in caplog.text
    assert jobs.late("fm") == jobs.late("vm") == {"b": 3}
    caplog.clear()
    jobs.call("fm", "vm", final=True)
    assert caplog.text == ""
    results = exfm.run(load(jobs.folder, jobs.config))
    assert results["data"]["late_rows"] == 3
    assert [note.split(":")[0] for note in results["notes"]] == ["fm", "vm"]
    assert "are not read" in Path(jobs.config["run_dir"], "report.html").read_text()


def test_rows_of_a_late_file_that_overlaps_others_are_counted_too(jobs: Jobs) -> None:
    jobs.add("a", day(0))
    jobs.add("c", pa.concat_tables([day(1).slice(0, 3), day(1).slice(6), day(2)]))
    jobs.call("fm", final=True)
    jobs.add("b", day(1).slice(3, 3))
    jobs.call("fm", final=True)
    assert jobs.late("fm") == {"b": 3}


def test_a_file_that_is_written_again_with_the_same_rows_is_no_news(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.add("a", pa.concat_tables([day(0), day(1)]))
    jobs.call("fm", final=True)
    jobs.remove("a")
    jobs.add("a0", day(0))
    jobs.add("a1", pa.concat_tables([day(1), day(2)]))
    with caplog.at_level(logging.WARNING):
        jobs.call("fm", final=True)
    assert (caplog.text, jobs.late("fm")) == ("", {})
    assert len(jobs.predicted("fm")) == 36


def test_an_incomplete_window_is_done_again_with_all_of_its_rows(jobs: Jobs) -> None:
    jobs.add("a", pa.concat_tables([day(0), day(1).slice(0, 5)]))
    exfm.run(load(jobs.folder, jobs.config))
    jobs.add("b", pa.concat_tables([day(1).slice(5), day(2)]))
    grown = exfm.run(load(jobs.folder, jobs.config))
    at_once = exfm.run(load(jobs.folder, {**jobs.config, "run_dir": str(jobs.folder / "at-once")}))
    for model in ("fm", "vm"):
        assert grown["models"][model]["tasks"] == at_once["models"][model]["tasks"]
        files = [sorted(Path(jobs.folder, run, "predictions", model).iterdir()) for run in ("run", "at-once")]
        assert [file.name for file in files[0]] == [file.name for file in files[1]], "named by their content"
    assert grown["data"]["late_rows"] == 0


def test_a_lost_manifest_is_named_and_nothing_is_trained(jobs: Jobs) -> None:
    jobs.add("a", pa.concat_tables([day(number) for number in range(5)]))
    jobs.call("fm", "vm", final=True)
    lost = Path(jobs.config["run_dir"], "commits", "train", "vm", "000002.json")
    manifest = lost.read_bytes()
    lost.unlink()
    for again in (lambda: jobs.call("vm", final=True), lambda: exfm.run(load(jobs.folder, jobs.config))):
        with pytest.raises(exfm.RunError, match=r"vm/000002\.json: the manifest is missing .*exfm repair"):
            again()
    assert not lost.exists()
    lost.write_bytes(manifest)
    assert exfm.run(load(jobs.folder, jobs.config))["models"]["vm"]["examples"] == 60


def test_rows_that_come_late_are_set_aside(jobs: Jobs) -> None:
    for number in range(2):
        jobs.add(str(number), day(number))
    jobs.call("fm", "vm", final=True)
    late = rows([101, 102], [3.0, 4.0])
    jobs.add("late", late)
    jobs.call("fm", "vm", final=True)
    (file,) = Path(jobs.config["run_dir"], "late", "vm").glob("*.parquet")
    assert pq.read_table(file).column("example_id").to_pylist() == [101, 102]
    jobs.add("later", rows([103], [5.0]))
    jobs.call("fm", "vm", final=True)
    (file,) = Path(jobs.config["run_dir"], "late", "vm").glob("*.parquet")
    aside = pq.read_table(file)
    assert aside.column("example_id").to_pylist() == [101, 102, 103]
    assert set(jobs.config["stream"]["source"]["features"][0]["name"].split()) <= set(aside.column_names)
    assert exfm.run(load(jobs.folder, jobs.config))["data"]["late_rows"] == 3
    # A compaction writes the rows again, and another file loses some.
    jobs.add("merged", pa.concat_tables([late, rows([103], [5.0])]))
    jobs.remove("late")
    jobs.remove("later")
    assert exfm.run(load(jobs.folder, jobs.config))["data"]["late_rows"] == 3
    jobs.remove("merged")
    jobs.add("left", rows([103], [5.0]))
    assert exfm.run(load(jobs.folder, jobs.config))["data"]["late_rows"] == 3
    (file,) = Path(jobs.config["run_dir"], "late", "vm").glob("*.parquet")
    assert sorted(pq.read_table(file).column("example_id").to_pylist()) == [101, 102, 103]


def test_a_window_waits_for_rows_that_may_come_late(jobs: Jobs) -> None:
    jobs.config["stream"]["allowed_lateness"] = "12h"
    jobs.add("0", day(0))
    jobs.add("1", rows([13, 14], [24.0, 35.0]))
    jobs.call("fm", "vm", final=False)
    assert jobs.starts("vm") == []  # day 0 is complete when rows of hour 36 are there
    jobs.add("late", rows([101], [23.0]))
    jobs.add("2", rows([15], [36.5]))
    jobs.call("fm", "vm", final=False)
    assert jobs.starts("vm") == [0.0]
    results = exfm.run(load(jobs.folder, jobs.config))
    assert results["data"]["late_rows"] == 0
    assert [window["examples"] for window in results["models"]["vm"]["tasks"]["click"]["windows"]] == [13, 3]


def test_stretches_without_rows_leave_nothing_behind(jobs: Jobs) -> None:
    jobs.add("a", pa.concat_tables([rows([1, 2], [0.0, 0.1]), rows([3, 4], [24.0 * 365, 24.0 * 365 + 1])]))
    config = jobs.config | {"stream": {**jobs.config["stream"], "window": "10m"}}
    results = exfm.run(load(jobs.folder, config))
    assert [window["examples"] for window in results["models"]["vm"]["tasks"]["click"]["windows"]] == [2, 1, 1]
    assert len(list(Path(config["run_dir"], "commits").rglob("*.json"))) == 9


def test_windows_that_are_gone_before_a_student_has_come_to_them_are_named(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        jobs.add(str(number), day(number))
    jobs.call("fm", final=True)
    jobs.add("3", day(3))
    jobs.remove("0")
    jobs.remove("1")
    jobs.call("fm", "vm", final=True)
    assert jobs.starts("vm") == [48.0, 72.0]
    assert "vm: windows 0, 1 were trained on by other models" in caplog.text
    notes = exfm.run(load(jobs.folder, jobs.config))["notes"]
    assert any(note.startswith("vm: before window 2023-11-17") for note in notes)


def test_a_folder_is_bound_by_its_first_commit_only(jobs: Jobs) -> None:
    bad = day(0).set_column(3, "click", pa.array([2] + [0] * 11))
    jobs.add("a", bad)
    with pytest.raises(exfm.ConfigError, match="a label is 0 or 1"):
        exfm.run(load(jobs.folder, jobs.config))
    assert exfm.run(load(jobs.folder, jobs.config, "models.fm.embedding_dim=8", "stream.on_bad_row=skip"))
    with pytest.raises(exfm.ConfigError, match=r"models\.fm\.embedding_dim was 8 and is now 4.*--fresh"):
        exfm.run(load(jobs.folder, jobs.config, "stream.on_bad_row=skip"))


def test_what_may_change_on_the_way_is_named_in_the_report(jobs: Jobs) -> None:
    jobs.add("a", day(0))
    exfm.run(load(jobs.folder, jobs.config))
    shutil.move(jobs.folder / "data", jobs.folder / "moved")
    pq.write_table(day(1), jobs.folder / "moved" / "b.parquet")
    path = f"stream.source.path={jobs.folder / 'moved'}"
    results = exfm.run(load(jobs.folder, jobs.config, path, "models.vm.optimizer.dense.lr=0.01"))
    assert results["models"]["vm"]["examples"] == 24
    assert results["data"]["late_rows"] == 0
    assert any("models.vm.optimizer.dense.lr is 0.01; it was 0.001" in note for note in results["notes"])


def test_a_run_of_exfm_0_1_is_refused_in_words(jobs: Jobs) -> None:
    jobs.add("a", day(0))
    old = Path(jobs.config["run_dir"], "commits", "train", "fm")
    old.mkdir(parents=True)
    (old / "000000.json").write_text(json.dumps({"window": {}, "counters": {}, "files": {}}))
    with pytest.raises(exfm.ConfigError, match=r"a run of exfm 0\.1.*another run_dir"):
        exfm.run(load(jobs.folder, jobs.config))


# ---- any history of a folder ---------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9), st.integers(1, 3)),  # a file of a six-hour cell, early or late
        st.tuples(st.just("grow"), st.integers(0, 9), st.integers(1, 3)),
        st.tuples(st.just("remove"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("train"), st.sampled_from([("fm",), ("vm",), ("fm", "vm")]), st.booleans()),
        st.tuples(st.just("kill"), st.sampled_from([("fm",), ("vm",), ("fm", "vm")]), st.integers(0, 2)),
    ),
    min_size=3,
    max_size=12,
)


class History:
    """Simulates a folder whose files come, grow and go, and the rows that a job over it must have read.

    A file's name is that of its cell of six hours, and a number: rows of a cell never overlap in time.
    """

    def __init__(self, folder: Path) -> None:
        self.jobs = Jobs(folder, config_of(folder, window="6h"))
        self.files: dict[str, list[tuple[int, float]]] = {}
        self.ever: set[int] = set()  # examples that were in the folder when a job was called
        self.numbers = [0] * 11

    def put(self, cell: int, count: int, name: str) -> None:
        before = self.files.get(name, [])
        new = []
        for _ in range(count):
            number = self.numbers[cell]
            self.numbers[cell] += 1
            new.append((1000 * cell + number, 6.0 * cell + 0.1 * (number + 1)))
        self.files[name] = before + new
        self.jobs.add(name, rows([example for example, _ in self.files[name]], [hour for _, hour in self.files[name]]))

    def here(self) -> dict[int, float]:
        return {example: hour for table in self.files.values() for example, hour in table}

    def call(self, models: tuple[str, ...], final: bool, stop_after: int | None = None) -> None:
        """Calls a job, and checks the rows that it has read of those present."""
        before = {model: set(self.jobs.starts(model)) for model in models} if self.started else {}
        present = self.here()
        self.ever |= present.keys()
        with contextlib.suppress(KeyboardInterrupt):
            self.jobs.call(*models, final=final, stop_after=stop_after, **{"stream.start": "2023-11-15T00:00:00Z"})
        for model in models if self.started else ():
            for start in set(self.jobs.starts(model)) - before.get(model, set()):
                in_window = sorted(example for example, hour in present.items() if start <= hour < start + 6)
                read = [example for example in self.jobs.predicted(model) if example // 1000 * 6.0 == start]
                assert sorted(read) == in_window, "every row that was there in time, once"

    @property
    def started(self) -> bool:
        return Path(self.jobs.config["run_dir"], "run.json").exists()


@settings(max_examples=10 if settings().max_examples <= 10 else 100, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS)
def test_any_history_of_a_folder(
    operations: list[tuple[str, Any, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    history = History(tmp_path_factory.mktemp("history"))
    history.put(0, 2, "00-0")  # the stream never begins earlier, which is refused
    for number, (kind, target, how) in enumerate(operations):
        if kind == "add":
            history.put(target, how, f"{target:02d}-{number}")
        elif kind == "grow" and (grown := [name for name in history.files if int(name[:2]) == target]):
            history.put(target, how, grown[-1])
        elif kind == "remove" and (gone := [name for name in history.files if int(name[:2]) == target]):
            if len(history.files) > 1:
                history.jobs.remove(gone[0])
                del history.files[gone[0]]
        elif kind == "train":
            history.call(target, how)
        elif kind == "kill":
            history.call(target, False, how)
    history.call(("fm", "vm"), True)
    for model in ("fm", "vm"):
        read = history.jobs.predicted(model)
        assert len(set(read)) == len(read), "no row twice"
        hours = [example // 1000 for example in read]
        assert hours == sorted(hours), "no window after a later one"
        late = sum(history.jobs.late(model).values())
        here = set(history.here()) - set(read)
        assert late >= len(here), "what was left out is counted"
