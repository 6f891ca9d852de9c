"""Ends a job on SIGTERM: at once while it waits, and after the current chunk while it trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

GRACE_S = 10.0
"""Time that the current chunk may still take, because schedulers send SIGKILL about 30 s after SIGTERM."""


class StoppedError(KeyboardInterrupt):
    """The job received SIGTERM. Handlers that let an interrupt pass let this exception pass too."""


@dataclass
class _State:
    working: bool = False
    asked: bool = False


# Signal handlers are global to a process, and so is their state.
_state = _State()


def heed_sigterm() -> None:
    """Makes SIGTERM raise ``StoppedError`` in the main thread, the only thread that can set signal handlers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop_soon)
        signal.signal(signal.SIGALRM, _stop_now)


@contextmanager
def ending_after_a_chunk() -> Iterator[None]:
    """Delays the end until ``end_if_asked`` is called, the block is left, or ``GRACE_S`` is over."""
    _state.working = True
    try:
        yield
    finally:
        _state.working = False
    end_if_asked()


def end_if_asked() -> None:
    """Ends the job if SIGTERM has arrived.

    Raises:
        StoppedError: SIGTERM has arrived.
    """
    if _state.asked:
        # The alarm is cancelled, because it would interrupt the clean-up that follows.
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise StoppedError


def _stop_soon(number: int, frame: FrameType | None) -> None:
    # A second SIGTERM does not wait for the chunk.
    if not _state.working or _state.asked:
        _stop_now(number, frame)
    _state.asked = True
    signal.setitimer(signal.ITIMER_REAL, GRACE_S)


def _stop_now(number: int, frame: FrameType | None) -> None:
    raise StoppedError
