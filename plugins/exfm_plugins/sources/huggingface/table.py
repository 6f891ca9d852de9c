"""Loads a dataset, from a disk or the Hub, and reads rows of it as Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fsspec
import pyarrow as pa

from exfm.components import suggestion

# What save_to_disk writes next to the rows, of one split and of several.
_SAVED = ("dataset_info.json", "dataset_dict.json")


def load(path: str, subset: str, split: str, columns: Sequence[str]) -> Any:
    """A split of a dataset, with the given columns, which reads as Arrow tables.

    Raises:
        ValueError: the package is not installed, or there is no such dataset, split or column.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError("huggingface needs the package datasets: pip install 'exfm[huggingface]'") from error
    try:
        found = _load(datasets, path, subset, split)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"huggingface: path: {path!r} cannot be loaded: {reason}") from error
    for column in columns:
        if column not in found.column_names:
            hint = suggestion(column, found.column_names)
            raise ValueError(f"huggingface: {path}, split {split!r}, has no column {column!r}.{hint}")
    return found.select_columns(list(columns)).with_format("arrow")


def _load(package: Any, path: str, subset: str, split: str) -> Any:
    filesystem, root = fsspec.url_to_fs(path)
    if not any(filesystem.exists(f"{root.rstrip('/')}/{name}") for name in _SAVED):
        return package.load_dataset(path, subset or None, split=split)
    found = package.load_from_disk(path)
    if isinstance(found, package.Dataset):
        return found
    if split not in found:
        raise ValueError(f"it has no split {split!r}.{suggestion(split, found)}")
    return found[split]


def rows(table: Any, which: slice | list[int]) -> pa.RecordBatch:
    """Some rows of a loaded dataset, one at least: a slice, or their numbers."""
    return table[which].combine_chunks().to_batches()[0]
