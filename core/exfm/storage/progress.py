"""Computes which windows a model keeps, and how far a student has come in them."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice
from typing import Literal

from exfm.config.keep_section import NEWEST
from exfm.config.retention import RetentionRecord
from exfm.interfaces.duration import microseconds
from exfm.storage.commits import NONE, CommitLog, Stage


def first_kept_window(log: CommitLog, stage: Stage, model: str, keep: int | timedelta | Literal["all"]) -> int:
    """Returns the index of the oldest committed window that a model keeps; 0 where it keeps all."""
    head = log.head(stage, model)
    if keep == "all" or head == NONE:
        return 0
    count = keep if isinstance(keep, int) else NEWEST
    first = list(islice(log.newest_first(stage, model), count))[-1]
    if isinstance(keep, timedelta) and keep:
        window = log.load(stage, model, head).window
        # A window stays if it ends later than the age before the newest window's end. All windows have one length.
        first = min(first, head - (microseconds(keep) - 1) // (window.end_us - window.start_us))
    return max(first, 0)


def needed_from_us(log: CommitLog, student: str, retention: RetentionRecord) -> int:
    """Returns the start of the first window whose supervision, or snapshot, of a teacher a student may still read.

    A student whose newest snapshot is lost goes back to an earlier snapshot, so its last window counts as undone. A
    student with epochs reads those of its first windows again in the window after them.
    """
    done = log.head("train", student)
    if done == NONE:
        return retention.start_us
    last = log.load("train", student, done)
    if retention.epochs_us:
        before = last.previous
        if before == NONE or log.load("train", student, before).window.end_us <= retention.epochs_us:
            return retention.start_us
    return last.window.start_us
