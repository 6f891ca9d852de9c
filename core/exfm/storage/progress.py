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


def next_start_us(log: CommitLog, student: str, retention: RetentionRecord) -> int:
    """Returns the start of the first window that a student may still run.

    A student whose newest snapshot is lost goes back to an earlier snapshot, so its last window counts as undone.
    """
    done = log.head("train", student)
    return retention.start_us if done == NONE else log.load("train", student, done).window.start_us


def rows_needed_us(log: CommitLog, student: str, retention: RetentionRecord) -> int:
    """Returns the start of the first window whose supervision a student may still read.

    A student with epochs reads the supervision of its first windows again in the window after them.
    """
    done = log.head("train", student)
    if done != NONE and retention.epochs_us:
        before = log.load("train", student, done).previous
        if before == NONE or log.load("train", student, before).window.end_us <= retention.epochs_us:
            return retention.start_us
    return next_start_us(log, student, retention)
