"""Reads the released files: user, video and labels of each preview.

Legend: N interactions in time order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import exfm
from exfm.sources import YEAR_9999_US, DelimitedFile

Unit = Literal["s", "ms", "us"]
LABELS = ("click", "like", "follow")
FILES = ("train.csv", "test.csv")

_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
# Timestamps may be written with a decimal point; as floats they are exact up to 2**53.
_COLUMNS = {"timestamp": pa.float64(), "user_id": pa.int32(), "item_id": pa.int32()}
_COLUMNS |= dict.fromkeys([f"is_{label}" for label in LABELS], pa.int8())


@dataclass(frozen=True)
class Interactions:
    """Holds all interactions, sorted by time, in the released order at equal times; 19 bytes each.

    Attributes:
        time_N: microseconds from the beginning of the release's clock.
        user_N: the released ids of users.
        item_N: the released ids of videos.
        label_N: 1 if the user reacted, by the name in LABELS.
    """

    time_N: NDArray[np.int64]
    user_N: NDArray[np.int32]
    item_N: NDArray[np.int32]
    label_N: dict[str, NDArray[np.int8]]


def read_interactions(url: str, unit: Unit) -> Interactions:
    """Reads train.csv and test.csv, and sorts them together.

    Raises:
        ValueError: a file is missing, both are empty, or a line cannot be read or lacks a value.
    """
    batches: list[dict[str, NDArray[np.generic]]] = []
    for name in FILES:
        batches += _batches(f"{url.rstrip('/')}/{name}")
    if not batches:
        raise ValueError(f"kuaivideo: path: the files at {url!r} hold no rows")
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in _COLUMNS}
    # Stable, so that rows of equal times keep the released order, train.csv first.
    order = np.argsort(columns["timestamp"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    time_N = columns["timestamp"] * _US[unit]
    # The last is the largest. Without the check, a wrong unit would overflow dates only later.
    if time_N[-1] > YEAR_9999_US:
        problem = f"timestamp with time_unit: {unit} lies past the year 9999; does it count a smaller unit?"
        raise ValueError(f"kuaivideo: {url!r}: {problem}")
    return Interactions(
        time_N=time_N.astype(np.int64),
        user_N=columns["user_id"],
        item_N=columns["item_id"],
        label_N={label: columns[f"is_{label}"] for label in LABELS},
    )


def _batches(url: str) -> list[dict[str, NDArray[np.generic]]]:
    file = DelimitedFile(url, _COLUMNS, owner="kuaivideo", header=True)
    batches = []
    for batch in file.read(0, file.rows):
        for name in _COLUMNS:
            if batch[name].null_count:
                row = int(batch[name].is_null().to_numpy(zero_copy_only=False).argmax())
                row += exfm.sources.Origin.from_batch(batch).row
                raise ValueError(f"kuaivideo: {url}, row {row}: {name}: the value is missing")
        batches.append({name: batch[name].to_numpy() for name in _COLUMNS})
    return batches
