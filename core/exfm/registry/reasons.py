"""Why a plugin's code failed, in one line."""

from __future__ import annotations

import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

import pluggy
import pydantic

_LONGEST = 400
_NOT_THE_PLUGIN = (
    str(Path(__file__).parents[1]),
    str(Path(pluggy.__file__).parent),
    str(Path(pydantic.__file__).parent),
    str(Path(traceback.__file__).parent / "importlib"),
    "<frozen importlib",
)


def reason_of(error: BaseException) -> str:
    """Type and message, with the last place in the plugin's own code where there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_PLUGIN)]
    place = f" ({outside[-1].filename}:{outside[-1].lineno})" if outside else ""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a plugin's exception may fail to print itself
        text = ""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"{type(error).__name__}: {text or 'no message'}{place}"


def is_missing(module: str) -> bool:
    """Whether a module is known not to exist, found out without importing anything.

    A module of a package that is not imported yet counts as existing: to look for it would import the package.
    """
    parent = module.rpartition(".")[0]
    if parent and parent not in sys.modules:
        return False
    try:
        return module not in sys.modules and find_spec(module) is None
    except (ImportError, ValueError):
        return True
