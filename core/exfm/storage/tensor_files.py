"""Writes tensors as a safetensors file without copying them, and reads them into existing memory or maps them.

The safetensors package copies all tensors before it writes, and needs the whole file in memory to check and read it.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from exfm.errors import RunError

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
_ALIGNMENT = 8  # of the first tensor, as the safetensors package pads its header

_MAPPED = 1 << 20
"""Tensors of at least so many bytes are memory-mapped; below, reading is cheaper than a mapping and its page faults."""


class Sink(Protocol):
    """Accepts bytes in order."""

    def write(self, data: Any) -> int:
        """Writes bytes or a buffer."""


def write_tensors(sink: Sink, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes contiguous CPU tensors; equal tensors always produce equal bytes.

    Args:
        sink: receives the file's bytes.
        tensors: tensors by name.
        metadata: strings for the header's metadata.
    """
    # Widest dtypes first: each tensor then starts at a multiple of its element size, and can be mapped without a copy.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # Trailing spaces are legal JSON: they align the first tensor.
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    sink.write(len(encoded).to_bytes(8, "little") + encoded)
    for _, tensor in ordered:
        # The view as bytes shares the tensor's memory, and numpy has no bfloat16.
        sink.write(tensor.detach().flatten().view(torch.uint8).numpy())


def read_tensors(
    file: BinaryIO,
    where: str,
    select: Callable[[str], bool] = lambda name: True,
    into: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Reads tensors of a file on a local disk. Large tensors are memory-mapped: the caller copies what it keeps.

    Args:
        file: unbuffered file.
        where: name of the file in error messages.
        select: tells by its name whether a tensor is read; by default all are read.
        into: destinations by tensor name; a tensor is read into a destination of its dtype and shape, and that
            destination is returned.

    Raises:
        RunError: the file is not a safetensors file, or there is no memory for a tensor.
    """
    tensors: dict[str, Tensor] = {}
    entries, start = _header(file, where)
    for name in filter(select, entries):
        try:
            dtype, shape = _DTYPES[entries[name]["dtype"]], entries[name]["shape"]
            first, end = entries[name]["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{where}: tensor {name!r}: not as safetensors describes one") from error
        destination = (into or {}).get(name)
        try:
            if destination is not None and _matches(destination, dtype, shape):
                _read_into(file, start + first, destination)
                tensors[name] = destination
            elif end - first >= _MAPPED:
                tensors[name] = _mapped(file, start + first, dtype, shape)
            else:
                tensors[name] = torch.empty(shape, dtype=dtype)
                _read_into(file, start + first, tensors[name])
        except (MemoryError, OSError, RuntimeError) as error:
            raise RunError(
                f"{where}: {name}: cannot be read: {error or 'no memory'}. It has {end - first:,} bytes; "
                "`exfm plan CONFIG` says what a process needs"
            ) from error
    return tensors


def _header(file: BinaryIO, where: str) -> tuple[dict[str, Any], int]:
    """Reads the header: an entry for each tensor, and the offset of the first tensor in the file."""
    file.seek(0)
    try:
        # A damaged length could ask for exabytes: compare it with the file's size before reading.
        size = int.from_bytes(file.read(8), "little")
        if size > file.seek(0, os.SEEK_END) - 8:
            raise ValueError("its header is longer than the file")
        file.seek(8)
        entries = json.loads(file.read(size))
        if not isinstance(entries, dict):
            raise ValueError("its header is no object")
    except ValueError as error:
        raise RunError(f"{where}: no safetensors file: {error}") from error
    entries.pop("__metadata__", None)
    return entries, 8 + size


def _matches(tensor: Tensor, dtype: torch.dtype, shape: list[int]) -> bool:
    """Tells whether a tensor can be read into: dtype and shape are those of the file, and its memory is contiguous."""
    same_form = tensor.dtype == dtype and list(tensor.shape) == shape
    return same_form and tensor.device.type == "cpu" and tensor.is_contiguous()


def _read_into(file: BinaryIO, start: int, tensor: Tensor) -> None:
    file.seek(start)
    left = tensor.detach().flatten().view(torch.uint8).numpy().data
    # An unbuffered read returns at most 2 GiB on Linux, and fewer bytes at a signal.
    while left.nbytes:
        count = file.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise OSError("the file ends before it")
        left = left[count:]


def _mapped(file: BinaryIO, start: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    # A mapping starts at a page: the bytes before the tensor are mapped too and skipped.
    skipped = start % mmap.ALLOCATIONGRANULARITY
    size = torch.Size(shape).numel() * dtype.itemsize
    # Copy on write: torch needs writable memory, and writes must not reach the committed file.
    pages = mmap.mmap(file.fileno(), skipped + size, access=mmap.ACCESS_COPY, offset=start - skipped)
    return torch.frombuffer(pages, dtype=dtype, offset=skipped, count=size // dtype.itemsize).view(shape)
