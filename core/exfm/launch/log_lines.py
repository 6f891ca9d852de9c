"""Reads the last line of a job's log, which says why the job ended."""

from __future__ import annotations

from pathlib import Path

_TAIL = 4096  # bytes of the end of a log: an error is a paragraph


def last_line(log_dir: str, job: str) -> str:
    """Returns the last line of a job's log that is not blank; the name of the log where it has none."""
    path = Path(log_dir, f"{job}.log")
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _TAIL, 0))
            # The tail may begin in the middle of a character.
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:  # of a job on another machine
        lines = []
    for line in reversed(lines):
        if line.strip():
            return line.strip()
    return f"nothing in {path}"
