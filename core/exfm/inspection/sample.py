"""Reads a sample of a log: runs of consecutive rows from row groups across all files, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from exfm.inspection.columns import Column, classify, plain_values
from exfm.inspection.log import Log

ROWS = 200_000
"""The most rows of a sample."""

_BLOCK_ROWS = 1_024
"""Consecutive rows that are kept together, because an id that repeats does so within few rows."""
_GROUPS = 64
_DECODED_ROWS = 4_000_000
"""The most rows that are decoded, because a row group may be far larger than its share of the sample."""
_BYTES = 256 * 2**20
"""The most memory of the sampled rows."""


@dataclass(frozen=True)
class Sample:
    """Holds sampled rows.

    Attributes:
        columns: by name, in the order of the files.
        rows: the number of sampled rows.
        block_starts: positions of rows that do not follow the row before in its file.
        is_whole: whether all rows of the log are in it.
        conflicts: the types of columns that differ from file to file in more than their width.
    """

    columns: dict[str, Column]
    rows: int
    block_starts: np.ndarray
    is_whole: bool
    conflicts: dict[str, str]


def read_sample(log: Log, rows: int = ROWS) -> Sample:
    """Reads at most ``rows`` rows, from row groups that are spread evenly over the log."""
    conflicts = _conflicts(log)
    blocks: list[dict[str, pa.Array]] = []
    starts = [0]
    for batch in _blocks(log, rows):
        starts.append(starts[-1] + batch.num_rows)
        plain: dict[str, pa.Array] = {}
        for field, values in zip(batch.schema, batch.columns, strict=True):
            if field.name not in conflicts:
                plain[field.name] = plain_values(values)
        blocks.append(plain)
    count = starts[-1]
    stored: dict[str, pa.DataType] = {}
    for footer in log.footers:
        for field in footer.schema:
            # A column without values has the null type in its file: the type of a later file counts.
            if field.name not in conflicts and (field.name not in stored or pa.types.is_null(stored[field.name])):
                stored[field.name] = field.type
    block_R = np.repeat(np.arange(len(blocks)), np.diff(starts))
    columns: dict[str, Column] = {}
    for name, kind in stored.items():
        columns[name] = Column(name, kind, _joined(blocks, name, np.diff(starts)), log.rows, block_R)
    return Sample(columns, count, np.array(starts[:-1]), count == log.rows, conflicts)


def _conflicts(log: Log) -> dict[str, str]:
    """Finds columns whose kind differs between files."""
    kinds: dict[str, dict[str, None]] = {}
    for footer in log.footers:
        for field in footer.schema:
            if not pa.types.is_null(field.type):
                kinds.setdefault(field.name, {})[" of ".join(classify(field.type))] = None
    return {name: " and ".join(sorted(differing)) for name, differing in kinds.items() if len(differing) > 1}


def _joined(blocks: list[dict[str, pa.Array]], name: str, sizes: np.ndarray) -> pa.Array:
    """Concatenates a column's values in all blocks; files that lack the column have nulls."""
    present = [block[name] for block in blocks if name in block and not pa.types.is_null(block[name].type)]
    kind = present[0].type if present else pa.null()
    arrays: list[pa.Array] = []
    for block, size in zip(blocks, sizes, strict=True):
        values = block.get(name)
        if values is None or pa.types.is_null(values.type):
            values = pa.nulls(int(size), kind)
        arrays.append(values if values.type == kind else values.cast(kind))
    return pa.concat_arrays(arrays)


def _blocks(log: Log, rows: int) -> Iterator[pa.RecordBatch]:
    """Yields runs of consecutive rows."""
    groups: list[tuple[str, int, int]] = []
    for footer in log.footers:
        groups += [(footer.path, index, size) for index, size in enumerate(footer.group_rows) if size]
    rows = min(rows, _affordable(log, *groups[0]))
    chosen = range(len(groups))
    if log.rows > rows:
        count = min(len(groups), _GROUPS, max(2, _DECODED_ROWS * len(groups) // log.rows))
        # The first and the last row group are always among them.
        chosen = np.unique(np.linspace(0, len(groups) - 1, count).round().astype(int)).tolist()
    share = max(_BLOCK_ROWS, rows // len(chosen))
    for position in chosen:
        path, index, size = groups[position]
        stride = 1 if log.rows <= rows else -(-size // share)
        with log.open(path) as file:
            for number, batch in enumerate(file.iter_batches(_BLOCK_ROWS, row_groups=[index])):
                if number % stride == 0:
                    yield batch


def _affordable(log: Log, path: str, group: int, _: int) -> int:
    """Returns the number of rows that the memory of a sample holds, by the size of the log's first rows."""
    with log.open(path) as file:
        batch = next(file.iter_batches(_BLOCK_ROWS, row_groups=[group]))
    return int(max(_BLOCK_ROWS, _BYTES * batch.num_rows // max(1, batch.nbytes)))
