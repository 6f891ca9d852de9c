"""Reads columns of several text files of a release, in the order of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exfm.sources import DelimitedFile, Origin

Columns = dict[str, NDArray[Any]]


def read_in_order(
    folder: str, files: Sequence[str], types: Mapping[str, pa.DataType], time: str, owner: str
) -> Columns:
    """Reads files with a header, and sorts their rows together by time.

    Args:
        types: the columns to read.
        time: the column to sort by; rows of equal times keep the released order, file by file.
        owner: the name of the data source, for messages.

    Raises:
        ValueError: a file is missing, all are empty, or a line cannot be read or lacks a value.
    """
    batches: list[Columns] = []
    for name in files:
        batches += _batches(f"{folder.rstrip('/')}/{name}", types, owner)
    if not batches:
        raise ValueError(f"{owner}: path: the files at {folder!r} hold no rows")
    columns: Columns = {}
    for name in types:
        columns[name] = np.concatenate([batch[name] for batch in batches])
    order = np.argsort(columns[time], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _batches(url: str, types: Mapping[str, pa.DataType], owner: str) -> Iterator[Columns]:
    file = DelimitedFile(url, types, owner=owner, header=True)
    for batch in file.read(0, file.rows):
        columns: Columns = {}
        for name in types:
            if batch[name].null_count:
                row = int(batch[name].is_null().to_numpy(zero_copy_only=False).argmax())
                row += Origin.from_batch(batch).row
                raise ValueError(f"{owner}: {url}, row {row}: {name}: the value is missing")
            columns[name] = batch[name].to_numpy()
        yield columns
