"""Summarises the failure of a plugin's code in a line."""

from __future__ import annotations

import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

import pluggy
import pydantic

# Characters of a message, because `exfm plugins` prints a line per plugin.
_LONGEST = 400
# Frames in these files are not the plugin's: exfm calls pluggy and pydantic, and those call the plugin.
_NOT_THE_PLUGIN = (
    str(Path(__file__).parents[1]),
    str(Path(pluggy.__file__).parent),
    str(Path(pydantic.__file__).parent),
    str(Path(traceback.__file__).parent / "importlib"),
    "<frozen importlib",
)


def failure_reason(error: BaseException) -> str:
    """Returns type and message of an exception, and the last line of the plugin's code in its traceback."""
    location = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith(_NOT_THE_PLUGIN):
            location = f" ({frame.filename}:{frame.lineno})"
    try:
        text = " ".join(str(error).split())
    except Exception:
        # The __str__ of a plugin's exception may itself raise.
        text = ""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return f"{type(error).__name__}: {text or 'no message'}{location}"


def is_missing(module: str) -> bool:
    """Tells whether a module certainly does not exist, without importing anything.

    A module of a package that is not imported yet counts as existing, because looking for it would import the package.
    """
    parent = module.rpartition(".")[0]
    if parent and parent not in sys.modules:
        return False
    try:
        return module not in sys.modules and find_spec(module) is None
    except (ImportError, ValueError):
        return True
