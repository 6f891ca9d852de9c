"""Finds the columns of labels, of example ids, and of the group of an example."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from exfm.errors import ConfigError
from exfm.inspection.columns import Column
from exfm.inspection.log import Log
from exfm.inspection.names import EXAMPLE, LABEL, USER, WEAK_USER, hints, words

_IDS_PER_ROW = 0.1
"""A column named after rows has at least so many ids per row; a user or an item has fewer."""

_FEW = 12
"""Numbers with so few values are named where no column is a label: they may be ratings."""


@dataclass(frozen=True)
class Labels:
    """Lists the columns of labels, and other columns of 0 and 1, which are features."""

    columns: tuple[Column, ...]
    others: tuple[Column, ...]


def find_labels(log: Log, columns: Collection[Column]) -> Labels:
    """Finds the labels among the columns of 0 and 1; nulls are labels that are not known.

    Raises:
        ConfigError: no column holds 0 and 1.
    """
    binary = [column for column in columns if column.is_binary]
    hinted = [column for column in binary if hints(column.name, LABEL)]
    unnamed = [column for column in binary if words(column.name)[:1] not in (["is"], ["has"])]
    labels = hinted or unnamed or binary
    if not labels:
        raise ConfigError(_no_label(log, columns))
    return Labels(tuple(labels), tuple(column for column in binary if column not in labels))


def _no_label(log: Log, columns: Collection[Column]) -> str:
    near: list[str] = []
    for column in columns:
        if column.kind in ("integer", "number", "boolean", "string") and 0 < column.distinct <= _FEW:
            values = sorted(map(str, set(column.present.to_pylist())))
            near.append(f"{column.name} ({', '.join(values[:_FEW])})")
    listed = f" Columns of few values: {'; '.join(near)}." if near else ""
    return (
        f"{log.url}: no column is a label: numbers or booleans, 0 and 1, or null where it is not known.{listed} Write "
        "a column of 0 and 1, such as rating >= 4, into the log; or write an experiment by hand, whose labels may be "
        "numbers or classes (kind: regression, multiclass)"
    )


def find_example_id(columns: Iterable[Column], repeating: dict[str, str]) -> Column | None:
    """Finds a column of a value that no other row has; None where rows are to be numbered.

    Args:
        repeating: receives the columns that are named as ids of rows and whose ids repeat, with how often they do.
    """
    unique: list[Column] = []
    for column in columns:
        if column.kind not in ("integer", "string") or not hints(column.name, EXAMPLE):
            continue
        if column.is_unique:
            unique.append(column)
        elif column.distinct > _IDS_PER_ROW * len(column.values) and hints(column.name, EXAMPLE[:-3]):
            repeated = len(column.present) - column.distinct
            repeating[column.name] = (
                f"it names no example, because ids repeat or are missing: of {len(column.values)} sampled rows "
                f"{repeated} repeat an id and {column.values.null_count} have none"
            )
    # A name that says "row" or "impression" before any other unique id.
    return min(unique, key=lambda column: _rank(column.name), default=None)


def _rank(name: str) -> int:
    positions = [EXAMPLE.index(word) for word in words(name) if word in EXAMPLE]
    return min(positions, default=len(EXAMPLE))


def absent_name(names: Collection[str]) -> str:
    """Returns a name of example ids that no column has and that resembles none, so that rows are numbered."""
    for name in ("example_id", "row_number", "numbered", "no_column_of_ids", "zzz"):
        if name not in names and not get_close_matches(name, names, n=1):
            return name
    return "_" * 40


def find_group(columns: Iterable[Column]) -> Column | None:
    """Finds the column of users: ids with many rows each."""
    repeated: list[Column] = []
    for column in columns:
        if column.kind in ("integer", "string") and column.distinct > 1 and not column.is_unique:
            repeated.append(column)
    for vocabulary in (USER, WEAK_USER):
        users = [column for column in repeated if hints(column.name, vocabulary)]
        if users:
            # Of user_id and user_type it is the column with more values.
            return max(users, key=lambda column: column.ids)
    return None
