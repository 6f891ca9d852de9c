"""Decodes row groups in threads, ahead of the reader, at bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

import pyarrow as pa

from exfm.sources.row_groups.interleave import Batches
from exfm.sources.row_groups.order import PlacedGroup

AHEAD_BYTES = 1 << 28
"""Decoded rows that wait for the reader take so much memory at most, and a batch for each thread beside it."""


class _DecodedGroup:
    """Holds the batches of a row group that are decoded and wait for the reader, with their sizes in bytes.

    Attributes:
        is_busy: whether a thread decodes its next batch, which no other thread may do meanwhile.
        is_asked: whether the reader waits for its next batch.
        is_done: whether all of its batches are decoded, or an error ended it.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.waiting: deque[tuple[int, tuple[int, pa.RecordBatch]]] = deque()
        self.is_busy = self.is_asked = self.is_done = False
        self.error: BaseException | None = None


class ReadAhead:
    """Decodes the batches of row groups in threads; each group's batches come in their order, and with its error.

    Within the bytes allowed, the first groups that are not done are decoded, each by a single thread at once. A batch
    that the reader waits for is decoded whatever waits, because the reader may need it to pass on the others.

    Args:
        groups: in the order in which ``read`` will be called for them.
        decode: yields the batches of a group; called in any thread.
        threads: the number of threads.
        most_bytes: size of the batches that wait.
    """

    def __init__(
        self,
        groups: Sequence[PlacedGroup],
        decode: Callable[[PlacedGroup], Batches],
        threads: int,
        most_bytes: int,
    ) -> None:
        self._later = deque(_DecodedGroup(decode(group)) for group in groups)
        self._opened = deque(self._later)
        self._active: list[_DecodedGroup] = []
        self._most_bytes = most_bytes
        self._bytes = 0
        self._closed = False
        # Guards all fields, and those of groups but ``batches``.
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        for _ in range(threads):
            self._activate_next()
            self._threads.append(threading.Thread(target=self._work, name="exfm-decoder", daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the threads, and closes the groups, whether or not they were read to their end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for group in self._active:
            group.batches.close()

    def read(self, _: PlacedGroup) -> Batches:
        """Yields the batches of the next group."""
        group = self._opened.popleft()
        with self._changed:
            self._activate_next()
            self._changed.notify_all()
        while (batch := self._take(group)) is not None:
            yield batch

    def _activate_next(self) -> None:
        """Lets threads decode another group, so that as many are ahead of the reader as there are threads."""
        if self._later:
            self._active.append(self._later.popleft())

    def _take(self, group: _DecodedGroup) -> tuple[int, pa.RecordBatch] | None:
        """Returns the next batch of a group, as soon as it is decoded; None at its end."""
        with self._changed:
            group.is_asked = True
            self._changed.notify_all()
            while not group.waiting and not group.is_done:
                self._changed.wait()
            group.is_asked = False
            if group.waiting:
                size, batch = group.waiting.popleft()
                self._bytes -= size
                self._changed.notify_all()
                return batch
            if group.error is not None:
                raise group.error
            return None

    def _work(self) -> None:
        """Decodes batches until all groups are closed."""
        while (group := self._next_group()) is not None:
            batch, error = None, None
            try:
                batch = next(group.batches, None)
            except BaseException as raised:
                # Not swallowed: the reader raises it when it comes to this group.
                error = raised
            with self._changed:
                group.is_busy = False
                if batch is None:
                    group.is_done, group.error = True, error
                    self._active.remove(group)
                else:
                    size = batch[1].get_total_buffer_size()
                    group.waiting.append((size, batch))
                    self._bytes += size
                self._changed.notify_all()

    def _next_group(self) -> _DecodedGroup | None:
        """Waits for a group to decode a batch of, and reserves it; returns None when the reading has ended."""
        with self._changed:
            while not self._closed:
                free = [group for group in self._active if not group.is_busy]
                asked = [group for group in free if group.is_asked and not group.waiting]
                if self._bytes < self._most_bytes:
                    asked += free
                if asked:
                    asked[0].is_busy = True
                    return asked[0]
                self._changed.wait()
        return None
