"""Parses columns in paths, as Hive, Spark and others write them: ``dt=2024-03-01/hour=03/part-0.parquet``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import pyarrow as pa

_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?\d{1,18}")  # 18 digits always fit into 64 bits


def path_columns(paths: Iterable[str]) -> dict[str, dict[str, pa.Scalar]]:
    """Parses the columns in each path, by path and name: integers if all values of all paths are, or strings.

    Escapes in values are decoded (``%3A``), and Hive's name for a missing value becomes null.
    """
    texts = {path: dict(_pairs(path)) for path in paths}
    types = _types(texts.values())
    columns_by_path: dict[str, dict[str, pa.Scalar]] = {}
    for path, columns in texts.items():
        columns_by_path[path] = {
            name: pa.scalar(_value(text, types[name]), types[name]) for name, text in columns.items()
        }
    return columns_by_path


def _pairs(path: str) -> Iterable[tuple[str, str | None]]:
    for folder in path.split("/")[:-1]:
        name, equals, text = folder.partition("=")
        if name and equals:
            yield unquote(name), None if text == _NULL else unquote(text)


def _types(texts: Iterable[Mapping[str, str | None]]) -> dict[str, pa.DataType]:
    types: dict[str, pa.DataType] = {}
    for columns in texts:
        for name, text in columns.items():
            # Once a string, always a string; a null fits both types.
            is_integer = text is None or _INTEGER.fullmatch(text)
            types[name] = types.get(name, pa.int64()) if is_integer else pa.string()
    return types


def _value(text: str | None, kind: pa.DataType) -> int | str | None:
    if text is not None and pa.types.is_integer(kind):
        return int(text)
    return text
