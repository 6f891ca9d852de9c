"""Reads the released files: who saw which video, and what they did.

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
# timestamp may be written with a point; it is exact as a float up to 2**53.
_COLUMNS = {"timestamp": pa.float64(), "user_id": pa.int32(), "item_id": pa.int32()} | {
    f"is_{label}": pa.int8() for label in LABELS
}


@dataclass(frozen=True)
class Interactions:
    """All interactions, sorted by time, those of one moment as released; 19 bytes each.

    Attributes:
        time_N: microseconds from the beginning of the release's clock.
        user_N, item_N: the released ids.
        label_N: what the user did, by LABELS.
    """

    time_N: NDArray[np.int64]
    user_N: NDArray[np.int32]
    item_N: NDArray[np.int32]
    label_N: dict[str, NDArray[np.int8]]


def read_interactions(url: str, unit: Unit) -> Interactions:
    """Reads train.csv and test.csv, and sorts them together.

    Raises:
        ValueError: one is missing, both are empty, or a line cannot be read or lacks a value.
    """
    parts = [part for name in FILES for part in _parts(f"{url.rstrip('/')}/{name}")]
    if not parts:
        raise ValueError(f"kuaivideo: path: the files at {url!r} hold no rows")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
    order = np.argsort(columns["timestamp"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    time_N = columns["timestamp"] * _US[unit]
    if time_N[-1] > YEAR_9999_US:
        problem = f"timestamp with time_unit: {unit} lies past the year 9999; does it count a smaller unit?"
        raise ValueError(f"kuaivideo: {url!r}: {problem}")
    return Interactions(
        time_N=time_N.astype(np.int64),
        user_N=columns["user_id"],
        item_N=columns["item_id"],
        label_N={label: columns[f"is_{label}"] for label in LABELS},
    )


def _parts(url: str) -> list[dict[str, NDArray[np.generic]]]:
    file = DelimitedFile(url, _COLUMNS, owner="kuaivideo", header=True)
    parts = []
    for batch in file.read(0, file.rows):
        for name in _COLUMNS:
            if batch[name].null_count:
                row = int(batch[name].is_null().to_numpy(zero_copy_only=False).argmax())
                raise ValueError(
                    f"kuaivideo: {url}, row {exfm.sources.Origin.of(batch).row + row}: {name}: the value is missing"
                )
        parts.append({name: batch[name].to_numpy() for name in _COLUMNS})
    return parts
