"""Columns that stand in the path, as Hive, Spark and others write them: ``dt=2024-03-01/hour=03/part-0.parquet``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import pyarrow as pa

_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?\d{1,18}")


def path_columns(paths: Iterable[str]) -> dict[str, dict[str, pa.Scalar]]:
    """The columns that each path gives its file, by path and name: integers where every value of all paths is one.

    Values are decoded from their escapes (``%3A``), and Hive's name for a missing one is null.
    """
    texts = {path: dict(_pairs(path)) for path in paths}
    types = _types(texts.values())
    return {
        path: {name: pa.scalar(_value(text, types[name]), types[name]) for name, text in columns.items()}
        for path, columns in texts.items()
    }


def _pairs(path: str) -> Iterable[tuple[str, str | None]]:
    for folder in path.split("/")[:-1]:
        name, equals, text = folder.partition("=")
        if name and equals:
            yield unquote(name), None if text == _NULL else unquote(text)


def _types(texts: Iterable[Mapping[str, str | None]]) -> dict[str, pa.DataType]:
    types: dict[str, pa.DataType] = {}
    for columns in texts:
        for name, text in columns.items():
            is_integer = text is None or _INTEGER.fullmatch(text)
            types[name] = types.get(name, pa.int64()) if is_integer else pa.string()
    return types


def _value(text: str | None, kind: pa.DataType) -> int | str | None:
    return int(text) if text is not None and pa.types.is_integer(kind) else text
