"""Runs an iterator in a thread, ahead of its consumer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Runs an iterator in a thread; the consumer gets its items in order, and its exception after the items before it.

    Args:
        items: the iterator.
        most: the size of waiting items from which the thread waits for the consumer.
        size: the size of an item; by default items are counted.
    """

    def __init__(self, items: Iterator[T], most: int, size: Callable[[T], int] = lambda _: 1) -> None:
        self._most = most
        self._size_of = size
        self._waiting: deque[tuple[int, T]] = deque()
        self._size = 0
        self._closed = self._ended = False
        self._error: BaseException | None = None
        # Guards all fields.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, args=(items,), name="exfm-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        """Returns itself."""
        return self

    def __next__(self) -> T:
        """Returns the next item as soon as there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._waiting:
                size, item = self._waiting.popleft()
                self._size -= size
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration

    @property
    def is_ready(self) -> bool:
        """Whether the next item, or the end, can be had without waiting."""
        with self._changed:
            return bool(self._waiting) or self._ended

    def close(self) -> None:
        """Ends the thread, whether or not all items have been consumed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._end(None)
        except BaseException as error:
            # Not swallowed: the consumer raises it.
            self._end(error)

    def _put(self, item: T) -> bool:
        """Adds an item once there is room for it; returns False where the consumer has closed the prefetcher."""
        size = self._size_of(item)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._size < self._most)
            if self._closed:
                return False
            self._waiting.append((size, item))
            self._size += size
            self._changed.notify_all()
            return True

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()
