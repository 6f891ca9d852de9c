"""Cuts the rows of a window into batches of equal size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import pyarrow as pa

from exfm.data.column_types import unify
from exfm.interfaces.data_source import Shard


def regroup(batches: Iterable[pa.RecordBatch], size: int, shard: Shard) -> Iterator[pa.RecordBatch]:
    """Regroups rows into batches of ``size`` rows; the last batch may be smaller.

    A shard has every ``shard.count``-th row of the stream, and its batch those among ``size`` rows of the stream.
    """
    # Batch `number` covers the stream's rows from number * size; the first of the shard's has the offset below.
    sizes = (len(range((shard.index - number * size) % shard.count, size, shard.count)) for number in count())
    needed = next(sizes)
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        # Without origin: a chunk may mix files, and batches of unequal metadata do not concatenate.
        pending.append(batch.replace_schema_metadata(None))
        if len(pending) > 1 and not pending[-1].schema.equals(pending[0].schema):
            pending = unify(pending)
        rows += batch.num_rows
        while rows >= needed:
            table = pa.Table.from_batches(pending)
            yield _to_batch(table.slice(0, needed))
            pending = table.slice(needed).to_batches()
            rows -= needed
            needed = next(sizes)
    if rows:
        yield _to_batch(pa.Table.from_batches(pending))


def _to_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]
