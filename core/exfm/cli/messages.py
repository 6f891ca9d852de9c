"""Prints warnings and errors of a command on stderr, as text or as lines of JSON, without secrets."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import typer

from exfm.redaction import redact
from exfm.reporting.log_lines import JsonFormatter, LogFormat, json_line


class Messages:
    """Prints the messages of a command.

    Args:
        arguments: of the command line, which is read before it is parsed, because parsing may fail too.

    Attributes:
        debug: whether tracebacks are shown.
        as_json: whether each message is a line of JSON.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.debug = "--debug" in arguments
        words = " ".join(arguments).replace("--log-format=", "--log-format ")
        self.as_json = f"--log-format {LogFormat.JSON}" in words

    def set_up(self) -> None:
        """Sends the messages of Python's logging and warnings, and tracebacks, through this module."""
        # Before a library sets it, whose format would begin a sentence for users with the name of a module.
        logging.basicConfig(format="%(levelname)s: %(message)s")
        logging.setLogRecordFactory(_redacted_record)
        sys.excepthook = self._print_traceback
        if self.as_json:
            for handler in logging.getLogger().handlers:
                handler.setFormatter(JsonFormatter())
            logging.captureWarnings(True)
            warnings.formatwarning = _warning_line

    def error(self, text: str) -> None:
        """Prints the error that ends a command."""
        self._print(text, f"error: {text}", "error")

    def notice(self, text: str) -> None:
        """Prints why a command ends early."""
        self._print(text, text, "warning")

    def _print(self, message: str, text: str, level: str) -> None:
        line = json_line(level, event="message", message=message) if self.as_json else text
        typer.echo(line, err=True)

    def _print_traceback(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = redact("".join(traceback.format_exception(kind, error, trace)))
        if self.as_json:
            text = json_line("error", event="message", message=f"{kind.__name__}: {error}", traceback=text) + "\n"
        sys.stderr.write(redact(text))


def _redacted_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    """Creates a log record whose message has no secrets, whichever handler prints it."""
    record = logging.LogRecord(*arguments, **named)
    # Arguments are merged into the message first, because a secret may span both.
    record.msg, record.args = redact(record.getMessage()), None
    return record


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Formats a warning of Python's module ``warnings`` without the line of code, which no reader of a log needs."""
    return f"{category.__name__}: {message} ({filename}:{lineno})"
