"""Runs an experiment that is interrupted, and goes on."""

from __future__ import annotations

from typing import Any

import pytest

import exfm


class StopError(Exception):
    """Ends a run."""


def run_interrupted(experiment: exfm.Experiment, stop_after: int | None) -> dict[str, Any]:
    """Runs an experiment, stops it after a number of chunks, and runs it again to its end.

    Args:
        stop_after: None to run to the end at once.
    """
    chunks = 0

    def count(_: object) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == stop_after:
            raise StopError

    if stop_after is not None:
        with pytest.raises(StopError):
            exfm.run(experiment, count)
    return exfm.run(experiment)
