"""Pools of worker threads, and the number of threads of torch's operations."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Barrier

import torch


@cache
def worker_threads(count: int) -> ThreadPoolExecutor:
    """Starts a pool of threads, or returns the pool of this size; torch's operations in a worker use no other thread.

    Gradient mode and autocast are settings of a thread: set them in the function that the pool calls.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "exfm-worker", torch.set_num_threads, (1,))
    # A pool starts threads as needed: without a barrier, a thread could take two tasks and leave others unstarted.
    started = Barrier(count)
    list(pool.map(lambda _: started.wait(), range(count)))
    torch.set_num_threads(before)  # a thread's setting is the default of later threads
    return pool


@contextmanager
def restored_threads() -> Iterator[int]:
    """Restores, at its end, the number of threads of torch's operations, which the block may set, and yields it."""
    before = torch.get_num_threads()
    try:
        yield before
    finally:
        torch.set_num_threads(before)
