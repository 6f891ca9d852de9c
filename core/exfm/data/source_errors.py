"""What a data source complains of is the user's input: a path that is not there, a file that lacks a column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from exfm.errors import ConfigError

_KEY = "stream.source"
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


@contextmanager
def source_errors() -> Iterator[None]:
    """Turns what a source raises about the user's input into an error that names the key of the experiment file.

    Raises:
        ConfigError: the source raised a ValueError, or found no file, or may not read it.
    """
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(_KEY):
            raise
        raise type(error)(f"{_KEY}: {error}") from error  # of its own kind: some are waited for
    except (ValueError, *_NOT_THERE) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{_KEY}: {text}") from error
