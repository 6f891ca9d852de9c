"""`exfm init` on random columns: the reader accepts every row of the schema that it drafts, and the models build."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import exfm
from exfm.cli.init import render
from exfm.data.stream import ChunkReader
from exfm.inspection.draft import draft_schema
from exfm.inspection.log import read_log
from exfm.inspection.models import draft_models
from exfm.inspection.sample import read_sample
from exfm.transfer.build import check_models
from tests.training.logs import START_US

NOW_US = START_US + 10**15
NAMES = (
    "user_id", "item", "ad_ids", "price", "history_items", "history_age_s", "events_time", "is_new", "country", "x",
    "row_id", "null", "count of", "seen_items", "like", "device", "rating", "2nd", "dwell_ms", "code",
)  # fmt: skip
SCALARS = (
    pa.int64(), pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.string(), pa.bool_(), pa.decimal128(20, 0),
    pa.decimal128(9, 3), pa.dictionary(pa.int8(), pa.string()), pa.binary(), pa.large_string(), pa.timestamp("ns"),
    pa.date32(), pa.null(), pa.float16(),
)  # fmt: skip
ELEMENTS = (pa.int64(), pa.int32(), pa.float32(), pa.string(), pa.bool_(), pa.timestamp("ms"))


@st.composite
def columns(draw: st.DrawFn) -> dict[str, pa.Array]:
    """A time, a label, and up to nine columns of any type, with nulls."""
    rows = draw(st.sampled_from([2, 7, 150, 400]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    table: dict[str, pa.Array] = {
        "at": pa.array(START_US + np.sort(random.integers(0, 10**12, rows)), pa.timestamp("us")),
        "click": pa.array(np.arange(rows) % 2),
    }
    lengths = random.integers(0, 4, rows)
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=9, unique=True)):
        distinct, null_share = draw(st.sampled_from([1, 2, 5, 200])), draw(st.sampled_from([0.0, 0.0, 0.3]))
        numbers = random.integers(0, distinct, rows)
        missing = random.random(rows) < null_share
        if draw(st.booleans()):
            kind = draw(st.sampled_from(SCALARS))
            values = [None if gone else value(int(number), kind) for number, gone in zip(numbers, missing, strict=True)]
            table[name] = pa.array(values, kind)
        else:
            kind = draw(st.sampled_from(ELEMENTS))
            sizes = lengths if draw(st.booleans()) else random.integers(0, 3, rows)
            elements = [[value(int(n), kind) for n in random.integers(0, distinct, size)] for size in sizes]
            kept = [None if gone else items for items, gone in zip(elements, missing, strict=True)]
            table[name] = pa.array(kept, pa.list_(kind))
    return table


def value(number: int, kind: pa.DataType) -> Any:
    """A value of a type."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_floating(kind):
        return np.float16(number) if kind == pa.float16() else math.inf if number == 199 else number + 0.5
    if pa.types.is_boolean(kind):
        return number % 2 == 1
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return f"v{number}"
    if pa.types.is_binary(kind):
        return b"\xff" if number == 4 else b"v%d" % number
    if pa.types.is_temporal(kind):
        return number
    return None if pa.types.is_null(kind) else number % 128


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns())
def test_the_reader_accepts_the_drafted_schema(tmp_path: Path, columns: dict[str, pa.Array]) -> None:
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=100)
    log = read_log(str(tmp_path / "log.parquet"))
    try:
        draft = draft_schema(log, read_sample(log), NOW_US)
    except exfm.ConfigError as error:
        # The only reason here, because there are a time and a label.
        assert "no column is left to be a feature" in str(error)
        return
    (tmp_path / "log.yaml").write_text(render("log", draft, draft_models(draft)), encoding="utf-8")
    experiment = exfm.load_experiment(str(tmp_path / "log.yaml"))
    check_models(experiment)
    span = experiment.source.time_range()
    reader = ChunkReader(
        experiment.source, experiment.schema, experiment.config.stream, {"fm": {}}, exfm.sources.Shard()
    )
    window = exfm.sources.Window(0, span.start_us, span.end_us)
    assert sum(chunk.batch.example_id.numel() for chunk in reader.read(window)) == table.num_rows
    reader.close()
    # Each column is used, or there is a reason.
    used = {*experiment.schema.columns, *draft.left_out}
    assert used >= set(table.column_names)


@pytest.mark.parametrize("rows", [1_000, 30_000])
def test_a_sample_spans_the_log(tmp_path: Path, rows: int) -> None:
    table = pa.table({"n": np.arange(rows), "list": pa.array([[n] for n in range(rows)])})
    (tmp_path / "log").mkdir()
    for number in range(3):
        third = table.slice(number * rows // 3, rows // 3)
        pq.write_table(third, tmp_path / "log" / f"{number}.parquet", row_group_size=4_000)
    log = read_log(str(tmp_path / "log"))
    sample = read_sample(log, rows=10_000)
    values = sample.columns["n"].values.to_numpy()
    assert log.rows == rows // 3 * 3 and sample.is_whole == (rows == 1_000)
    assert sample.rows == values.size <= 21_000
    # No row twice, runs of consecutive rows, and rows of every tenth of the log.
    assert np.unique(values).size == values.size
    follows = np.ones(values.size, bool)
    follows[sample.block_starts] = False
    assert (np.diff(values)[follows[1:]] == 1).all()
    assert set(values * 10 // rows) == set(range(10))
    assert sample.columns["list"].present.to_pylist() == values.tolist()


@pytest.mark.parametrize("ids", [300, 5_000, 40_000])
def test_ids_of_a_long_log_are_estimated(tmp_path: Path, ids: int) -> None:
    random = np.random.default_rng(0)
    pq.write_table(pa.table({"id": random.integers(0, ids, 200_000)}), tmp_path / "log.parquet", row_group_size=20_000)
    sample = read_sample(read_log(str(tmp_path / "log.parquet")), rows=40_000)
    assert not sample.is_whole
    assert 0.9 * ids < sample.columns["id"].ids < 1.1 * ids
