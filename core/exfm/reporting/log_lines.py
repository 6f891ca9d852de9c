"""Formats lines of a job's log, as text for people or as JSON for log collectors."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any


class LogFormat(StrEnum):
    """How a job writes its log."""

    TEXT = "text"
    JSON = "json"


MODELS_IN_TEXT = 8
"""Models whose NE a line of text has; JSON has all of them."""


def now_text() -> str:
    """Returns the time of day, ISO 8601, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def json_line(level: str, **fields: Any) -> str:
    """Formats a line that is a JSON object."""
    return json.dumps({"time": now_text(), "level": level, **fields}, ensure_ascii=False)


class JsonFormatter(logging.Formatter):
    """Formats the records of Python's logging as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        fields: dict[str, Any] = {"event": "message", "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json_line(record.levelname.lower(), **fields)


def seconds_text(seconds: float) -> str:
    """Formats a length of time: ``0:01:20``, or ``2d 0:01:20``."""
    days, below = divmod(int(seconds), 86_400)
    text = str(timedelta(seconds=below))
    return f"{days}d {text}" if days else text


def bytes_text(count: float) -> str:
    """Formats a number of bytes: ``812 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def ne_text(ne: Mapping[str, float | None]) -> str:
    """Formats the NE of the first models, ``fm 0.8750 vm -``; empty where there are no models."""
    words: list[str] = []
    for model, value in list(ne.items())[:MODELS_IN_TEXT]:
        words.append(f"{model} -" if value is None else f"{model} {value:.4f}")
    if len(ne) > MODELS_IN_TEXT:
        words.append(f"and {len(ne) - MODELS_IN_TEXT} more")
    return " ".join(words)


def shares_text(seconds: Mapping[str, float]) -> str:
    """Formats seconds by phase as percentages of their sum, without phases below half a percent."""
    total = sum(seconds.values())
    words: list[str] = []
    for phase, value in seconds.items():
        share = 100 * value / total if total else 0.0
        if share >= 0.5:
            words.append(f"{phase} {share:.0f}%")
    return ", ".join(words)
