"""Threads that work side by side, each with its share of torch's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch


def worker_threads(count: int) -> ThreadPoolExecutor:
    """So many threads, always the same ones; each has an equal share of ``torch.get_num_threads`` for an operation.

    Whether gradients are wanted, and in which precision, is every thread's own: set it in what they are given to do.
    """
    return _pool(count, max(1, torch.get_num_threads() // count))


@cache
def _pool(count: int, each: int) -> ThreadPoolExecutor:
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "exfm-worker", torch.set_num_threads, (each,))
    started = Barrier(count)
    list(pool.map(lambda _: started.wait(), range(count)))
    torch.set_num_threads(own)  # what one thread sets, threads to come start with
    return pool
