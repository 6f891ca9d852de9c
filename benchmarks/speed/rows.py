"""Rows for the speed benchmark, the same for exfm and its peers: a click log as a Parquet file.

python benchmarks/speed/rows.py --rows 200000 --table-rows 100000 --out runs/speed/rows.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = 26
_HOUR_US = 3_600_000_000
_START_US = 1_700_000_000_000_000 // _HOUR_US * _HOUR_US
_GROUP = 65_536


def write(path: Path, rows: int, table_rows: int, windows: int, seed: int = 0) -> None:
    """Writes rows in order of time over so many hours; ids are table rows, a few of them in most examples."""
    random = np.random.default_rng(seed)
    weights = random.normal(0.0, 1.0, (FEATURES, table_rows)).astype(np.float32)
    # Cubing a uniform draw makes a tenth of the ids take nearly half of the examples.
    ids = (random.random((FEATURES, rows)) ** 3 * table_rows).astype(np.int64)
    logit = np.take_along_axis(weights, ids, axis=1).sum(axis=0) / FEATURES**0.5 - 1.0
    columns = {
        "example_id": np.arange(rows),
        "event_time": pa.array(_START_US + np.arange(rows) * (windows * _HOUR_US) // rows, pa.timestamp("us")),
        **{f"f{number}": ids[number] for number in range(FEATURES)},
        "click": (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=_GROUP)


def main() -> None:
    """Writes a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--table-rows", type=int, default=100_000)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write(arguments.out, arguments.rows, arguments.table_rows, arguments.windows)


if __name__ == "__main__":
    main()
