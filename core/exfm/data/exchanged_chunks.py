"""Cuts chunks from the rows that processes exchange, and decodes them in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from queue import SimpleQueue
from typing import TypeVar

import pyarrow as pa

from exfm.data.prefetcher import Prefetcher
from exfm.data.row_exchange import Round

T = TypeVar("T")


def exchanged_chunks(
    rounds: Iterator[Round],
    to_chunks: Callable[[Iterator[pa.RecordBatch]], Iterator[T]],
    chunk_rows: int,
    ahead: int,
) -> Iterator[T]:
    """Yields this process's share of each chunk.

    Rows are exchanged in the thread of the caller, because collectives have an order. A chunk more is exchanged than
    is yielded, so that it is decoded meanwhile. The number of rows that are exchanged is the same on all processes, so
    that all take part in the same rounds before the same chunk.

    Args:
        rounds: exchanges rows.
        to_chunks: cuts and decodes the rows of this process; called in another thread.
        chunk_rows: the number of rows of a chunk, over all processes.
        ahead: the number of decoded chunks that may wait.
    """
    received: SimpleQueue[pa.RecordBatch | None] = SimpleQueue()
    chunks = Prefetcher(to_chunks(iter(received.get, None)), ahead)
    rows = 0
    try:
        for number in count(2):
            while rows < number * chunk_rows:
                following = next(rounds, None)
                if following is None:
                    received.put(None)
                    break
                rows += following.size
                if following.rows is not None:
                    received.put(following.rows)
            chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk
    finally:
        # Ends the thread, also where the caller has not taken all chunks.
        received.put(None)
        chunks.close()
