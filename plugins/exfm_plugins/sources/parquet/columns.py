"""Checks the columns of files that the source depends on; the core checks all others, row by row."""

from __future__ import annotations

from collections.abc import Sequence, Set

from exfm.components import suggestion


def check_somewhere(url: str, columns: Sequence[str], names: Set[str]) -> None:
    """Raises ValueError if a column is in none of the files, whose columns are ``names``: a typo in the schema."""
    for column in columns:
        if column not in names:
            raise ValueError(f"parquet: no file at {url!r} has a column {column!r}.{suggestion(column, names)}")
