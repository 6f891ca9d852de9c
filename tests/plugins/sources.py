"""What tests of data sources share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

import exfm

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
    return rows_of(source.read(exfm.sources.Window(0, time.start_us, time.end_us)))


def run_example(name: str, folder: Path, *overrides: str, **source: Any) -> dict[str, Any]:
    """Runs examples/data/NAME.yaml on other data; keywords are fields of its source.

    Returns:
        What results.json holds.
    """
    data = [f"stream.source.{key}={value}" for key, value in source.items()]
    small = ["evaluation.replicates=100", f"run_dir={folder / 'run'}"]
    experiment = exfm.load_experiment(str(EXAMPLES / f"{name}.yaml"), [*small, *data, *overrides])
    return dict(exfm.run(experiment))
