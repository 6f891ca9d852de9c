"""Measures the memory that this process uses."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Returns the bytes of main memory that the process holds now; where no system file says so, the most it held."""
    if _STATM.exists():
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return peak_bytes()


def peak_bytes() -> int:
    """Returns the most bytes of main memory that the process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def device_bytes() -> int | None:
    """Returns the bytes of the GPU that torch holds for this process; None where it uses none."""
    # Never imported here, because commands that show progress without torch need not wait for it.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())
