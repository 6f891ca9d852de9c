"""Measures how many rows a job reads of a wide Parquet log: by threads, and where `where` rules most rows out.

The log has 30 columns of ids, 10 of numbers and a folder for each of four countries. Rows per second of the clock
and processor seconds are the best of several runs, in turns, because other work on the machine slows single runs down.

    python benchmarks/reading.py --rows 1000000 --threads 1 2 --runs 4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exfm.data.decode import decode
from exfm.data.time_order import in_time_order
from exfm.data.validation import RowChecker
from exfm.interfaces.data_source import DataSource, Window
from exfm_plugins.sources.parquet.source import Parquet

COUNTRIES = 4
IDS, NUMBERS = 30, 10


def write_log(folder: Path, rows: int) -> None:
    """Writes a day of rows, a file for each country."""
    random = np.random.default_rng(0)
    time_us = np.sort(random.integers(0, 86_400_000_000, rows))
    columns: dict[str, Any] = {
        "example_id": np.arange(rows),
        "event_time": pa.array(time_us, pa.timestamp("us")),
        "click": random.integers(0, 2, rows).astype(np.int8),
    }
    columns |= {f"id_{number}": random.integers(0, 100_000, rows) for number in range(IDS)}
    columns |= {f"number_{number}": random.normal(size=rows) for number in range(NUMBERS)}
    log, country = pa.table(columns), random.integers(0, COUNTRIES, rows)
    for value in range(COUNTRIES):
        path = folder / f"country={value}"
        path.mkdir()
        pq.write_table(log.filter(pa.array(country == value)), path / "log.parquet", row_group_size=65_536)


def open_log(folder: Path, threads: int) -> Parquet:
    """Opens the log."""
    features: list[dict[str, Any]] = [{"name": "country", "kind": "categorical", "rows": 8}]
    features += [{"name": f"id_{number}", "kind": "categorical", "rows": 65_536} for number in range(IDS)]
    features += [{"name": f"number_{number}", "kind": "dense"} for number in range(NUMBERS)]
    fields = {"path": str(folder), "decode_threads": threads, "features": features, "labels": [{"name": "click"}]}
    return Parquet(Parquet.Config.model_validate(fields))


def read(source: DataSource) -> Iterator[pa.RecordBatch]:
    """Reads the rows as they are in the files."""
    span = source.time_range()
    return source.read(Window(0, span.start_us, span.end_us))


def to_tensors(source: DataSource) -> Iterator[pa.RecordBatch]:
    """Reads, checks, sorts and decodes the rows, as a job does."""
    checker = RowChecker(source.schema(), skip=False, newest_us=-(2**63), in_order=False)
    for rows in in_time_order(map(checker.check, read(source)), source.schema()):
        decode(rows, source.schema())
        yield rows


def main() -> None:
    """Prints rows per second, and processor seconds per million rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=4)
    options = parser.parse_args()
    rates: dict[str, float] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        write_log(Path(name), options.rows)
        for _ in range(options.runs):
            for threads in options.threads:
                log = open_log(Path(name), threads)
                selected = log.select_rows([{"country": (1,)}])
                for which, source in (("all rows", log), (f"country 1 of {COUNTRIES}", selected)):
                    for stage in (read, to_tensors):
                        start, start_cpu = time.perf_counter(), time.process_time()
                        rows = sum(batch.num_rows for batch in stage(source))
                        assert rows == options.rows
                        key = f"{which}, {stage.__name__}, {threads} threads"
                        rates[key] = max(rates.get(key, 0.0), rows / (time.perf_counter() - start))
                        cpu = (time.process_time() - start_cpu) / rows * 1e6
                        seconds[key] = min(seconds.get(key, cpu), cpu)
    for key, rate in rates.items():
        print(f"{key}: {rate:,.0f} rows/s, {seconds[key]:.2f} processor seconds per million rows")


if __name__ == "__main__":
    main()
