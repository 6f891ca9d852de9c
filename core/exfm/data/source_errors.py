"""Turns a data source's exceptions into errors for the user: a missing path, a file that lacks a column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from exfm.errors import ConfigError

_KEY = "stream.source"
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


@contextmanager
def source_errors() -> Iterator[None]:
    """Turns a source's exception about the user's input into an error that names the key of the experiment file.

    Raises:
        ConfigError: the source raised a ValueError, or a file does not exist or may not be read.
    """
    try:
        yield
    except ConfigError as error:
        # Blocks may be nested: the key is named once.
        if str(error).startswith(_KEY):
            raise
        # The type is kept, because a job that follows the stream waits on a NotYetError.
        raise type(error)(f"{_KEY}: {error}") from error
    except (ValueError, *_NOT_THERE) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{_KEY}: {text}") from error
