"""Loads a dataset from a disk or the Hub, and reads its rows as Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fsspec
import pyarrow as pa

from exfm.components import suggestion

# Files that save_to_disk writes beside the rows: for a single split, and for several splits.
_SAVED = ("dataset_info.json", "dataset_dict.json")


def load(path: str, subset: str, split: str, columns: Sequence[str]) -> Any:
    """Loads some columns of a split of a dataset, which then reads as Arrow tables.

    Raises:
        ValueError: the package is not installed, or there is no such dataset, split or column.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError("huggingface needs the package datasets: pip install 'exfm[huggingface]'") from error
    try:
        dataset = _load(datasets, path, subset, split)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"huggingface: path: {path!r} cannot be loaded: {reason}") from error
    for column in columns:
        if column not in dataset.column_names:
            hint = suggestion(column, dataset.column_names)
            raise ValueError(f"huggingface: {path}, split {split!r}, has no column {column!r}.{hint}")
    return dataset.select_columns(list(columns)).with_format("arrow")


def _load(package: Any, path: str, subset: str, split: str) -> Any:
    filesystem, root = fsspec.url_to_fs(path)
    # load_dataset refuses a folder that save_to_disk has written.
    if not any(filesystem.exists(f"{root.rstrip('/')}/{name}") for name in _SAVED):
        return package.load_dataset(path, subset or None, split=split)
    saved = package.load_from_disk(path)
    if isinstance(saved, package.Dataset):
        return saved
    if split not in saved:
        raise ValueError(f"it has no split {split!r}.{suggestion(split, saved)}")
    return saved[split]


def read_rows(table: Any, numbers: slice | list[int]) -> pa.RecordBatch:
    """Reads at least a row of a loaded dataset, by a slice or by row numbers."""
    return table[numbers].combine_chunks().to_batches()[0]
