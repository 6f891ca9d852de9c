"""Times a call on a device, with the memory that it takes at the peak."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int = 10, warmup: int = 3) -> float:
    """Returns the median seconds of a call, by the device's own clock where it has one.

    On a CPU, where a script is only checked, the call is made once.
    """
    if device.type != "cuda":
        return wall_seconds(call, device)
    for _ in range(warmup):
        call()
    # Typed as Any, because torch declares no types of events.
    events: list[tuple[Any, Any]] = []
    new_event: Any = torch.cuda.Event
    for _ in range(repeats):
        start, end = new_event(enable_timing=True), new_event(enable_timing=True)
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    # elapsed_time is in milliseconds.
    milliseconds: list[float] = [start.elapsed_time(end) for start, end in events]
    return median(milliseconds) / 1e3


def wall_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of a single call by the wall clock, until the device has finished."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Returns the bytes that a call takes at the peak beyond those allocated before it; None on a CPU."""
    if device.type != "cuda":
        return None
    release(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def release(device: torch.device) -> None:
    """Frees memory of models that nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
