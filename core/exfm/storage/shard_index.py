"""The index of a snapshot's shard files, as JSON: the boxes of every tensor, and the file in which each box lies.

It holds the metadata of torch.distributed.checkpoint. A snapshot may come from elsewhere, so it holds no code: each
number is checked before memory is asked for, and no file is opened but those that the manifest lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exfm.errors import RunError
from exfm.storage.hashing import FileRecord
from exfm.storage.tensor_files import DTYPE_NAMES, DTYPES, StoredTensor

_MAX_DIMS = 8  # of a tensor: more than any model here has, and few enough to check
_COMPARED = 256  # boxes that are compared with all others at once, which bounds the memory of the comparison


@dataclass(frozen=True)
class Box:
    """Places a box of a tensor: the base name of its file, the index of its first element, and its shape."""

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def key(self, name: str, shape: Sequence[int]) -> str:
        """Returns the box's name in its file: that of the tensor, with ranges unless it is the whole tensor."""
        return box_key(name, shape, self.offsets, self.sizes)


@dataclass(frozen=True)
class IndexedTensor:
    """Describes a tensor, and the boxes that make it up."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    @classmethod
    def from_stored(cls, stored: StoredTensor, file: str) -> IndexedTensor:
        """Describes a tensor that lies whole in a file."""
        return cls(stored.dtype, stored.shape, (Box(file, (0,) * len(stored.shape), stored.shape),))

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of the index."""
        boxes = [{"file": box.file, "offsets": list(box.offsets), "sizes": list(box.sizes)} for box in self.boxes]
        return {"dtype": DTYPE_NAMES[self.dtype], "shape": list(self.shape), "boxes": boxes}


def box_key(name: str, shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> str:
    """Returns the name of a box in its file, such as ``weight[0:500,0:8]``; the tensor's name if it is the tensor."""
    if tuple(sizes) == tuple(shape):
        return name
    ranges = [f"{start}:{start + size}" for start, size in zip(offsets, sizes, strict=True)]
    return f"{name}[{','.join(ranges)}]"


def read_index(raw: Any, files: Mapping[str, FileRecord], where: str) -> dict[str, IndexedTensor]:
    """Checks an index, and returns its tensors by name.

    Args:
        raw: the parsed JSON.
        files: the committed files, by base name.
        where: name of the index in error messages.

    Raises:
        RunError: it is malformed, names another file, or its boxes do not make up a tensor.
    """
    tensors: dict[str, IndexedTensor] = {}
    if not isinstance(raw, dict):
        raise RunError(f"{where}: no index of tensors")
    for name, entry in raw.items():
        try:
            tensors[name] = _read_tensor(entry, files)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{where}: tensor {name!r}: not as an index describes one") from error
        except ValueError as error:
            raise RunError(f"{where}: tensor {name!r}: {error}") from error
    return tensors


def _read_tensor(entry: Mapping[str, Any], files: Mapping[str, FileRecord]) -> IndexedTensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"its dtype is {entry['dtype']!r}; allowed: {', '.join(DTYPES)}")
    dtype, shape = DTYPES[entry["dtype"]], _sizes(entry["shape"])
    boxes: list[Box] = []
    for raw in entry["boxes"]:
        box = Box(raw["file"], _sizes(raw["offsets"]), _sizes(raw["sizes"]))
        if box.file not in files:
            raise ValueError(f"it names the file {box.file!r}, which is not of the snapshot")
        if math.prod(box.sizes) * dtype.itemsize > files[box.file].bytes:
            raise ValueError(f"a box of {list(box.sizes)} elements does not fit into {box.file}")
        boxes.append(box)
    check_boxes(shape, boxes)
    return IndexedTensor(dtype, shape, tuple(boxes))


def _sizes(raw: Any) -> tuple[int, ...]:
    """Reads a shape, or the index of an element.

    Raises:
        ValueError: it is no list of few integers from 0 up.
    """
    if not isinstance(raw, list) or len(raw) > _MAX_DIMS:
        raise ValueError(f"{raw!r} is no shape")
    for size in raw:
        # A bool is an int in Python. Beyond 2**62 sums of sizes would overflow.
        if type(size) is not int or not 0 <= size < 1 << 62:
            raise ValueError(f"{raw!r} is no shape")
    return tuple(raw)


def check_boxes(shape: tuple[int, ...], boxes: Sequence[Box]) -> None:
    """Checks that boxes make up a tensor, each element once.

    Raises:
        ValueError: they do not.
    """
    for box in boxes:
        if len(box.offsets) != len(shape) or len(box.sizes) != len(shape):
            raise ValueError(
                f"a box at {list(box.offsets)} of {list(box.sizes)} has other dimensions than {list(shape)}"
            )
        for offset, size, room in zip(box.offsets, box.sizes, shape, strict=True):
            if offset + size > room:
                raise ValueError(f"a box at {list(box.offsets)} of {list(box.sizes)} lies outside of {list(shape)}")
    count = sum(math.prod(box.sizes) for box in boxes)
    if not boxes or count < math.prod(shape):
        raise ValueError(f"its boxes have {count:,} of its {math.prod(shape):,} elements: boxes are missing")
    # Boxes inside of the tensor, with as many elements as it has, cover it unless they overlap.
    if count > math.prod(shape) or _overlap(boxes):
        raise ValueError("its boxes overlap")


def _overlap(boxes: Sequence[Box]) -> bool:
    if len(boxes) == 1:
        return False
    start_NK = np.array([box.offsets for box in boxes])
    end_NK = start_NK + np.array([box.sizes for box in boxes])
    for first in range(0, len(boxes), _COMPARED):
        rows = slice(first, first + _COMPARED)
        before_MNK = start_NK[rows, None] < end_NK[None]
        after_MNK = start_NK[None] < end_NK[rows, None]
        overlap_MN = (before_MNK & after_MNK).all(axis=2)
        # Each box overlaps itself, unless it is empty.
        if overlap_MN.sum() > overlap_MN[:, rows].diagonal().sum():
            return True
    return False
