"""Tensors as a safetensors file, written from where they lie and read to where they are wanted, without a copy of all.

The library's own writer first copies them, and its own reader wants the whole file in memory.
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

_KINDS = {
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
_TYPES = {name: kind for kind, name in _KINDS.items()}
_ALIGNMENT = 8

_MAPPED = 1 << 20
"""Bytes of a tensor from which on it stays in the file until somebody looks at it; for less a copy is cheaper."""


class Sink(Protocol):
    """Takes bytes."""

    def write(self, data: Any) -> int:
        """Writes bytes or a buffer."""


def write_tensors(sink: Sink, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes contiguous tensors of the CPU; the same tensors always give the same bytes.

    Args:
        metadata: strings that the file's header holds besides.
    """
    # Widest numbers first: each tensor then lies where its type may lie in memory.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    sink.write(len(encoded).to_bytes(8, "little") + encoded)
    for _, tensor in ordered:
        sink.write(tensor.detach().flatten().view(torch.uint8).numpy())


def read_tensors(
    file: BinaryIO,
    where: str,
    wanted: Callable[[str], bool] = lambda name: True,
    into: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Reads tensors of a file that lies on a disk. Large ones are not read, but mapped: each must be copied to be kept.

    Args:
        file: not buffered.
        where: what an error calls it.
        wanted: which tensors, by name; all by default.
        into: memory by a tensor's name; where its form is the tensor's, the tensor is read into it and is it.

    Raises:
        RunError: it is no such file, or there is no memory for a tensor.
    """
    tensors: dict[str, Tensor] = {}
    entries, start = _header(file, where)
    for name in filter(wanted, entries):
        try:
            kind, shape = _TYPES[entries[name]["dtype"]], entries[name]["shape"]
            first, end = entries[name]["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{where}: tensor {name!r}: not as safetensors describes one") from error
        memory = (into or {}).get(name)
        try:
            if memory is not None and _has_form(memory, kind, shape):
                _read_into(file, start + first, memory)
                tensors[name] = memory
            elif end - first >= _MAPPED:
                tensors[name] = _mapped(file, start + first, kind, shape)
            else:
                tensors[name] = torch.empty(shape, dtype=kind)
                _read_into(file, start + first, tensors[name])
        except (MemoryError, OSError, RuntimeError) as error:
            raise RunError(
                f"{where}: {name}: cannot be read: {error or 'no memory'}. It has {end - first:,} bytes; "
                "`exfm plan CONFIG` says what a process needs"
            ) from error
    return tensors


def _header(file: BinaryIO, where: str) -> tuple[dict[str, Any], int]:
    """What the file says of each tensor, and where the first one begins."""
    file.seek(0)
    try:
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


def _has_form(memory: Tensor, kind: torch.dtype, shape: list[int]) -> bool:
    return (
        memory.dtype == kind and list(memory.shape) == shape and memory.device.type == "cpu" and memory.is_contiguous()
    )


def _read_into(file: BinaryIO, start: int, tensor: Tensor) -> None:
    file.seek(start)
    left = tensor.detach().flatten().view(torch.uint8).numpy().data
    while left.nbytes:
        count = file.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise OSError("the file ends before it")
        left = left[count:]


def _mapped(file: BinaryIO, start: int, kind: torch.dtype, shape: list[int]) -> Tensor:
    before = start % mmap.ALLOCATIONGRANULARITY
    size = torch.Size(shape).numel() * kind.itemsize
    # What somebody writes to it stays in this process.
    pages = mmap.mmap(file.fileno(), before + size, access=mmap.ACCESS_COPY, offset=start - before)
    return torch.frombuffer(pages, dtype=kind, offset=before, count=size // kind.itemsize).view(shape)
