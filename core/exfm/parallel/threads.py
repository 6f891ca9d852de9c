"""Threads that work side by side."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Barrier

import torch


@cache
def worker_threads(count: int) -> ThreadPoolExecutor:
    """So many threads, always the same ones, each of which does torch's operations by itself.

    Whether gradients are wanted, and in which precision, is every thread's own: set it in what they are given to do.
    """
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "exfm-worker", torch.set_num_threads, (1,))
    started = Barrier(count)
    list(pool.map(lambda _: started.wait(), range(count)))
    torch.set_num_threads(own)  # what one thread sets, threads to come start with
    return pool


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operations of this thread use no other one, which would look for work for a while after each of them."""
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(own)
