"""`yambda`: listens in order of time, with histories from three pools; MLPerf's experiment on a log of this shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.yambda.source import Yambda
from tests.plugins.sources import EXAMPLES, everything, run_example

# (uid, steps of five seconds, item, is_organic, event type, percent played)
Event = tuple[int, int, int, int, str, int | None]
TYPES = ("listen", "like", "dislike", "unlike", "undislike")
POOLS = {"listen_plus": 0, "skip": 1, "like": 2}
EVENTS: list[Event] = [
    (100, 0, 5, 1, "listen", 90),
    (100, 1, 6, 0, "listen", 10),
    (100, 1, 5, 1, "like", None),
    (100, 2, 7, 0, "listen", 50),
    (100, 9, 5, 1, "unlike", None),
    (100, 9, 5, 1, "listen", 49),
    (200, 1, 7, 1, "listen", 100),
    (200, 9, 1, 0, "listen", None),
]


def put(folder: Path, events: Sequence[Event] = EVENTS, named: Sequence[int] = (5, 5, 6), **changed: Any) -> str:
    """Writes a log as released: sorted by user, with dictionaries of event types and unsigned integers."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(zip(*events, strict=True)) or [()] * 6
    columns = {
        "uid": pa.array(rows[0], pa.uint32()),
        "timestamp": pa.array([5 * step for step in rows[1]], pa.uint32()),
        "item_id": pa.array(rows[2], pa.uint32()),
        "is_organic": pa.array(rows[3], pa.uint8()),
        "event_type": pa.array(rows[4], pa.string()).dictionary_encode(),
        "played_ratio_pct": pa.array(rows[5], pa.uint16()),
        "track_length_seconds": pa.array([200] * len(events), pa.uint32()),
    } | changed
    pq.write_table(pa.table(columns), folder / "multi_event.parquet", row_group_size=7)
    for name, first in (("artist", 31), ("album", 41)):
        ids = range(first, first + len(named))
        mapping = {f"{name}_id": pa.array(ids, pa.uint32()), "item_id": pa.array(named, pa.uint32())}
        pq.write_table(pa.table(mapping), folder / f"{name}_item_mapping.parquet")
    return str(folder)


def generated(users: int = 12, days: int = 4, events: int = 60) -> list[Event]:
    """A log of some days, sorted by user and time as the release is."""
    random = np.random.default_rng(0)
    rows: list[Event] = []
    for user in range(users):
        for step in np.sort(random.integers(0, days * 17_280, events)).tolist():
            kind = TYPES[int(random.choice(5, p=[0.8, 0.1, 0.04, 0.03, 0.03]))]
            item = int(random.integers(1, 30))
            played = int(random.integers(0, 120)) if kind == "listen" else None
            rows.append((100 + user, step, item, int(random.integers(0, 2)), kind, played))
    return rows


def source(path: str, **config: Any) -> Yambda:
    return Yambda(Yambda.Config(path=path, **config))


class TestYambda(DataSourceTests):
    component = Yambda
    plugin = exfm_plugins.sources
    configs = (
        {"path": "{folder}", "crosses": False},
        {"path": "{folder}", "history_length": 6, "min_history": 5, "rows": {"item_id": 16}},
    )

    def write(self, folder: Path) -> None:
        put(folder, generated(users=4, days=2, events=25), named=range(1, 30))


def test_listens_are_rows_and_other_events_are_past(tmp_path: Path) -> None:
    log = source(put(tmp_path))
    rows = everything(log)
    assert [(row["uid"], row["item_id"], row["listen_plus"]) for row in rows] == [
        (100, 5, 1), (100, 6, 0), (200, 7, 1), (100, 7, 1), (100, 5, 0), (200, 1, 0)
    ]  # fmt: skip
    assert [row["is_organic"] for row in rows] == [1, 0, 1, 0, 1, 0]
    assert [row["artist_id"] for row in rows] == [31, 33, 0, 0, 31, 0]
    assert [row["album_id"] for row in rows] == [41, 43, 0, 0, 41, 0]
    # Of the fifth row: not the unlike, and nothing at the same time.
    assert rows[4]["history_item_id"] == [5, 6, 5, 7] and rows[4]["history_kind"] == [0, 1, 2, 0]
    assert rows[4]["history_age"] == [45, 40, 40, 35] and rows[4]["history_artist_id"] == [31, 33, 31, 0]
    assert rows[1]["history_item_id"] == [5] and rows[2]["history_item_id"] == []
    assert log.time_range() == exfm.sources.TimeRange(0, 45_000_001)
    assert log.schema().domain == "is_organic"


@given(
    events=st.lists(
        st.tuples(
            st.integers(1, 2), st.integers(0, 12), st.integers(1, 9), st.integers(0, 1), st.sampled_from(TYPES),
            st.integers(0, 100),
        ),
        min_size=1,
        max_size=40,
    ).filter(lambda events: any(event[4] == "listen" for event in events)),
    length=st.integers(3, 12),
    least=st.integers(0, 2),
)  # fmt: skip
def test_histories_against_a_search(events, length, least, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("yambda")
    log = source(put(folder, events), history_length=length, min_history=least)

    def kind(event: Event) -> int | None:
        if event[4] == "listen":
            return POOLS["listen_plus" if (event[5] or 0) >= 50 else "skip"]
        return POOLS.get(event[4])

    expected = []
    for event in sorted(events, key=lambda event: event[1]):
        before = [other for other in events if other[0] == event[0] and other[1] < event[1]]
        if event[4] != "listen" or len(before) < least:
            continue
        ordered = sorted(enumerate(before), key=lambda item: (item[1][1], item[0]))
        kept: list[tuple[int, int]] = []
        for pool in POOLS.values():
            of_pool = [(at, number) for at, (number, other) in enumerate(ordered) if kind(other) == pool]
            kept += of_pool[-(length // 3) :]
        expected.append((event[0], event[2], [before[number][2] for _, number in sorted(kept)]))
    if not expected:
        with pytest.raises(ValueError, match="lower min_history"):
            log.time_range()
        return
    assert [(row["uid"], row["item_id"], row["history_item_id"]) for row in everything(log)] == expected


def test_crosses_tell_combinations_apart(tmp_path: Path) -> None:
    pairs = [(user, step, 5 + user % 2, 1, "listen", 60) for step in (0, 720, 1440) for user in (1, 2, 3, 4)]
    rows = everything(source(put(tmp_path, sorted(pairs))))
    for name, keys in (("user_x_hour", ("uid", "hour")), ("user_x_artist", ("uid", "artist_id"))):
        combinations = {tuple(row[key] for key in keys) for row in rows}
        assert len({row[name] for row in rows}) == len(combinations) > 3
        assert len({(row[name], *(row[key] for key in keys)) for row in rows}) == len(combinations)
    assert rows[0]["user_x_hour"] != rows[0]["user_x_artist"]


def test_the_example_runs(tmp_path: Path) -> None:
    path = put(tmp_path / "data", generated(users=4, days=8))
    small = ", ".join(f"{name}: 64" for name in ("uid", "item_id", "artist_id", "album_id"))
    results = run_example("yambda", tmp_path, path=path, rows=f"{{{small}}}")
    assert {"fm", "vm", "vm.control"} == results["models"].keys()


def test_mlperfs_protocol_on_a_tiny_log(tmp_path: Path) -> None:
    file = EXAMPLES.parent / "mlperf" / "dlrm_v4_hstu.yaml"
    path = put(tmp_path / "data", generated())
    published = exfm.load_experiment(str(file)).config
    assert published.stream.window.days == 1 and published.models["hstu"].batch_size == 8192
    rows = [f"stream.source.rows.{name}=64" for name in published.stream.source.config.rows]
    tiny = ["stream.source.history_length=30", "stream.source.min_history=20", "evaluation.replicates=100"]
    tiny += ["models.hstu.embedding_dim=8", "models.hstu.backbone.hidden=[8]", "models.hstu.precision=fp32"]
    tiny += ["models.hstu.sequence_encoder.attention_dim=4", "models.hstu.sequence_encoder.linear_dim=4"]
    overrides = [f"stream.source.path={path}", f"run_dir={tmp_path / 'run'}", *rows, *tiny]
    results = exfm.run(exfm.load_experiment(str(file), overrides))
    model = results["models"]["hstu"]
    listens = everything(source(path, history_length=30, min_history=20))
    assert model["examples"] == len(listens) > 300
    days = [row["event_time"].date() for row in listens]
    windows = model["tasks"]["listen_plus"]["windows"]
    assert [window["examples"] for window in windows] == [days.count(day) for day in sorted(set(days))]
    assert all(0 <= window["auc"] <= 1 for window in windows)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"event_type": pa.array(["listen"] * 7 + ["share"])}, ["row 7", "event_type", "'share'", "undislike"]),
        ({"uid": pa.array([1] * 3 + [None] + [1] * 4, pa.uint32())}, ["row 3", "uid", "missing"]),
    ],
)
def test_bad_events_are_named(tmp_path: Path, changed: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        everything(source(put(tmp_path, **changed)))
    assert all(word in str(error.value) for word in ["yambda", "multi_event.parquet", *words]), str(error.value)


def test_wrong_folders_and_tables_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file '.*multi_event.parquet'; `exfm data get yambda_50m`"):
        source(str(tmp_path)).time_range()
    with pytest.raises(ValueError, match="holds no events"):
        source(put(tmp_path / "empty", ())).time_range()
    with pytest.raises(ValueError, match=r"no table is called 'item'.* Did you mean 'item_id'"):
        source(str(tmp_path), rows={"item": 3})
    log = Path(put(tmp_path / "other"))
    pq.write_table(pa.table({"user": [1]}), log / "multi_event.parquet")
    with pytest.raises(ValueError, match="has no column 'uid'"):
        source(str(log)).time_range()
