"""What every data source must do, checked on small files: rows, windows, shards, and a schema that fits the rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

import exfm
from exfm.data.decode import decode
from exfm.data.validation import RowChecker

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


def rows_of(batches: Iterator[pa.RecordBatch]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for batch in batches:
        batch.validate(full=True)
        assert batch.num_rows
        rows += batch.to_pylist()
    return rows


def everything(source: exfm.DataSource) -> list[dict[str, Any]]:
    """All rows of the stream."""
    time = source.time_range()
    return rows_of(source.read(exfm.Window(0, time.start_us, time.end_us)))


def check_source(source: exfm.DataSource, windows: int = 7) -> list[dict[str, Any]]:
    """Windows hold the whole stream, shards the whole window, from any row on; the core takes every row.

    Returns:
        All rows.
    """
    schema, time, whole = source.schema(), source.time_range(), everything(source)
    assert whole
    step = (time.end_us - time.start_us) // windows + 1
    pieces: list[dict[str, Any]] = []
    for index, start in enumerate(range(time.start_us, time.end_us, step)):
        window = exfm.Window(index, start, start + step)
        piece = rows_of(source.read(window))
        pieces += piece
        for count in (1, 2, 3):
            for shard in range(count):
                for start_row in (0, 1, 4):
                    mine = rows_of(source.read(window, exfm.Shard(shard, count), start_row))
                    assert mine == piece[shard::count][start_row:]
    assert pieces == whole
    ids = [row[schema.example_id] for row in whole]
    assert len(set(ids)) == len(ids)
    checker = RowChecker(schema, skip=False, newest_us=time.start_us)
    for batch in source.read(exfm.Window(0, time.start_us, time.end_us)):
        assert decode(checker.check(batch), schema).example_id.numel() == batch.num_rows
    assert rows_of(source.read(exfm.Window(0, time.end_us, time.end_us + step))) == []
    assert rows_of(source.read(exfm.Window(0, time.start_us - step, time.start_us))) == []
    return whole


def run_example(name: str, folder: Path, *overrides: str, **source: Any) -> dict[str, Any]:
    """Runs examples/data/NAME.yaml on other data; keywords are fields of its source.

    Returns:
        What results.json holds.
    """
    data = [f"stream.source.{key}={value}" for key, value in source.items()]
    small = ["evaluation.replicates=100", f"run_dir={folder / 'run'}"]
    experiment = exfm.load_experiment(str(EXAMPLES / f"{name}.yaml"), [*small, *data, *overrides])
    return dict(exfm.run(experiment))
