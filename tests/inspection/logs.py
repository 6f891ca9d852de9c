"""A wide Parquet log with planted faults, for tests of `exfm init`."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.training.logs import DAY_US, START_US


def wide_log(rows: int = 2_000, seed: int = 0) -> dict[str, Any]:
    """Columns of every kind; a user has a country, and an item a category."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, 60, rows), random.integers(0, 150, rows)
    click = random.random(rows) < np.where((user + item) % 3 == 0, 0.5, 0.1)
    bought = [int(value) if random.random() < 0.7 else None for value in click & (random.random(rows) < 0.4)]
    lengths = random.integers(0, 5, rows)
    time_us = START_US + np.sort(random.integers(0, 8 * DAY_US, rows))
    seen = [random.integers(0, 150, length) for length in lengths]
    return {
        "impression id": pa.array([f"i{number}" for number in range(rows)]),
        "shown_at": pa.array(time_us // 1000),
        "logged": pa.array(time_us + 5, pa.timestamp("us")),
        "user_id": pa.array([f"u{number}" for number in user]),
        "item": pa.array(item.astype(np.int32)),
        "seller": pa.array([UUID(int=2**127 + int(number % 70)) for number in item]),
        "category": pa.array([f"c{number % 7}" for number in item]).dictionary_encode(),
        "country": pa.array([None if number % 10 == 0 else f"k{number % 4}" for number in user]),
        "price": pa.array([Decimal(int(cents)) / 100 for cents in random.lognormal(6, 2, rows)], pa.decimal128(18, 2)),
        "score": pa.array(random.normal(0, 1, rows).astype(np.float32)),
        "is_mobile": pa.array(random.random(rows) < 0.5),
        "dwell_seconds": pa.array(np.where(click, random.gamma(2.0, 10.0, rows), 0.0)),
        "margin": pa.array([None if number % 3 == 0 else 0.1 * float(number) for number in range(rows)]),
        "version": pa.array(np.full(rows, 3)),
        "empty": pa.nulls(rows),
        "tags": pa.array([[f"t{number}" for number in range(length % 3)] for length in lengths]),
        "history_items": pa.array([list(map(int, items)) for items in seen], pa.list_(pa.int64())),
        "history_age_s": pa.array([sorted(map(int, items), reverse=True) for items in seen], pa.list_(pa.int64())),
        "vector": pa.array([[0.5, 1.5]] * rows, pa.list_(pa.float32(), 2)),
        "title_embedding": pa.array([[float(number % 7), 0.5, -1.0] for number in item], pa.list_(pa.float16(), 3)),
        "nested": pa.array([{"a": 1}] * rows),
        "click": pa.array(click),
        "bought": pa.array(bought, pa.int8()),
    }


def write(folder: Path, columns: dict[str, Any], files: int = 2) -> str:
    """Writes a log to some files."""
    table = pa.table(columns)
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-table.num_rows // files)
    for number in range(files):
        pq.write_table(table.slice(number * size, size), folder / f"part-{number}.parquet", row_group_size=300)
    return str(folder)
