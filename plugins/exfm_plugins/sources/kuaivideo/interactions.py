"""Reads the released files: user, video and labels of each preview.

Legend: N interactions in time order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exfm.sources import YEAR_9999_US
from exfm_plugins.sources.released_files import read_in_order

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
    columns = read_in_order(url, FILES, _COLUMNS, "timestamp", "kuaivideo")
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
