"""Decides whether a scalar column is an id or a number, or no feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from exfm.inspection.columns import Column
from exfm.inspection.names import AGE, ID, NUMBER, hints, words

MOST_TABLE_ROWS = 2**20
_LEAST_TABLE_ROWS = 16
_FEW = 100
"""Integers with at most so many values are taken for ids, unless their name says that they count."""
_SKEWED = 2.0
"""Skewness beyond which a number's logarithm is taken; an exponential distribution has 2."""


@dataclass(frozen=True)
class ScalarKind:
    """Describes the use of a scalar column.

    Attributes:
        kind: ``categorical``, ``dense``, or empty for a column that is left out.
        reason: why it is left out, or a comment on it.
        missing: what nulls of a dense column count as; empty where it has none.
    """

    kind: str
    reason: str
    transform: str = "none"
    missing: str = ""


def scalar_kind(column: Column, is_referenced: bool) -> ScalarKind:
    """Decides on the use of a column.

    Args:
        is_referenced: whether a list column holds its ids.
    """
    reason = _unusable(column)
    if reason:
        return ScalarKind("", reason)
    if column.kind in ("string", "boolean") or (column.kind == "integer" and (is_referenced or _is_id(column))):
        return _categorical(column)
    # In float32, in which numbers are decoded.
    present = column.numbers[~np.isnan(column.numbers)]
    with np.errstate(over="ignore"):
        infinite = float(np.isinf(present.astype(np.float32)).mean())
    if infinite:
        return ScalarKind("", f"{_percent(infinite)} of its numbers are infinite; mend them in the log")
    if column.kind == "number" and _is_id_as_number(column):
        return ScalarKind("", "ids as fractions, which pandas makes of integers with nulls; write them as integers")
    comments: list[str] = []
    skew = _skewness(present)
    if abs(skew) > _SKEWED:
        comments.append(f"skewness {skew:.1f}")
    if column.null_share:
        comments.append(f"{_percent(column.null_share)} missing")
    transform = "log1p" if abs(skew) > _SKEWED else "none"
    return ScalarKind("dense", ", ".join(comments), transform, missing="mean" if column.null_share else "")


def table_rows(ids: int) -> int:
    """Returns the rows of a table for so many ids: a power of two, with room for ids to come."""
    return int(min(MOST_TABLE_ROWS, max(_LEAST_TABLE_ROWS, 2 ** int(np.ceil(np.log2(max(1.0, 1.25 * ids)))))))


def table_comment(column: Column, ids: int) -> str:
    """Describes the size of a column's table."""
    about = "" if len(column.values) == column.log_rows else "about "
    comment = f"{about}{ids:,} ids"
    if column.null_share:
        comment += f", {_percent(column.null_share)} missing"
    if 1.25 * ids > MOST_TABLE_ROWS:
        comment += "; several share a row, and more rows take more memory"
    return comment


def field_entry(column: Column) -> dict[str, Any]:
    """Describes a number of a sequence's events."""
    numbers = column.present.cast("float64").to_numpy()
    entry: dict[str, Any] = {"kind": "dense"}
    if hints(column.name, AGE) or abs(_skewness(numbers)) > _SKEWED:
        entry["transform"] = "log1p"
    return entry


def is_number_list(column: Column) -> bool:
    """Tells whether a list column of a sequence holds numbers, and no ids."""
    return column.elements == "number" or (
        column.elements == "integer" and hints(column.name, NUMBER) and column.distinct > 2
    )


def _unusable(column: Column) -> str:
    """Returns why a column can be no feature; empty where it can."""
    if column.kind == "time":
        return "a second time; a model reads numbers, such as the age of an item at the event"
    if column.kind in ("other", "nothing"):
        return f"no input is of type {column.stored}" if column.kind == "other" else "all of its values are null"
    if column.distinct == 0:
        return "all sampled values are null, or bytes that are no text"
    if column.is_constant:
        return "all sampled values are equal"
    is_id = column.kind in ("string", "integer")
    # Few rows say nothing: each id of a small sample may be the first of many.
    if is_id and len(column.values) >= _FEW and column.is_unique and (column.kind == "string" or _is_id(column)):
        return "every row has a value of its own, from which nothing can be learned"
    return ""


def _categorical(column: Column) -> ScalarKind:
    return ScalarKind("categorical", table_comment(column, column.ids))


def _is_id(column: Column) -> bool:
    if words(column.name)[-1:] in (["id"], ["code"], ["type"]):
        return True
    if hints(column.name, NUMBER):
        return False
    return column.distinct <= _FEW or hints(column.name, ID) or float(np.nanmin(column.numbers)) >= 0


def _is_id_as_number(column: Column) -> bool:
    present = column.numbers[~np.isnan(column.numbers)]
    return hints(column.name, ID) and not hints(column.name, NUMBER) and bool((present == np.floor(present)).all())


def _skewness(numbers: np.ndarray) -> float:
    deviation = numbers.std()
    # The mean, because a column may hold a value that float64 cannot cube.
    with np.errstate(all="ignore"):
        skew = float((((numbers - numbers.mean()) / deviation) ** 3).mean()) if deviation else 0.0
    return skew if np.isfinite(skew) else 0.0


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 1e-3 or not share else "less than 0.1%"
