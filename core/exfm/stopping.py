"""Ending a job when it is asked to: at once where it waits, after the chunk in work where it trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

GRACE_S = 10.0
"""How long a chunk may still take: schedulers kill what goes on half a minute after they have asked it to end."""


class StoppedError(KeyboardInterrupt):
    """SIGTERM has asked the job to end: an interrupt, which passes wherever one does."""


@dataclass
class _State:
    working: bool = False
    asked: bool = False


_state = _State()


def heed_sigterm() -> None:
    """Makes SIGTERM end this process by ``StoppedError``, where a handler can be set: in the main thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end_soon)
        signal.signal(signal.SIGALRM, _end)


@contextmanager
def ending_after_a_chunk() -> Iterator[None]:
    """Puts off the end until ``end_if_asked`` is called, or the block is left, or the time for it is over."""
    _state.working = True
    try:
        yield
    finally:
        _state.working = False
    end_if_asked()


def end_if_asked() -> None:
    """Ends the job, if it was asked to.

    Raises:
        StoppedError: it was.
    """
    if _state.asked:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise StoppedError


def _end_soon(number: int, frame: FrameType | None) -> None:
    if not _state.working or _state.asked:
        _end(number, frame)
    _state.asked = True
    signal.setitimer(signal.ITIMER_REAL, GRACE_S)


def _end(number: int, frame: FrameType | None) -> None:
    raise StoppedError
