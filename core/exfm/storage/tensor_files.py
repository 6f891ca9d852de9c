"""Writes tensors as a safetensors file without copying them, and reads them into existing memory or maps them.

The safetensors package copies all tensors before it writes, and needs the whole file in memory to check and read it.
Boxes of a tensor, such as the rows of a shard, are read in bounded memory.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from exfm.errors import RunError
from exfm.storage.hashing import explain_full_disk
from exfm.storage.temporary import spool_folder

DTYPE_NAMES = {
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
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_ALIGNMENT = 8  # of the first tensor, as the safetensors package pads its header

_MAPPED = 1 << 20
"""Tensors of at least so many bytes are memory-mapped; below, reading is cheaper than a mapping and its page faults."""

_BLOCK = 4 << 20
"""Bytes of whole rows that are read at once, where a box has some of their columns."""


class Sink(Protocol):
    """Accepts bytes in order."""

    def write(self, data: Any) -> int:
        """Writes bytes or a buffer."""


def write_tensors(sink: Sink, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors, one after the other in CPU memory; equal tensors always produce equal bytes.

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
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # Trailing spaces are legal JSON: they align the first tensor.
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    sink.write(len(encoded).to_bytes(8, "little") + encoded)
    for _, tensor in ordered:
        # The view as bytes shares the tensor's memory, and numpy has no bfloat16.
        sink.write(tensor.detach().cpu().flatten().view(torch.uint8).numpy())


@dataclass(frozen=True)
class StoredTensor:
    """Describes a tensor in a file.

    Attributes:
        start: offset of its first byte in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """Reads tensors of a safetensors file on a local disk.

    Args:
        file: unbuffered file.
        where: name of the file in error messages.

    Attributes:
        tensors: the tensors in the file, by name.

    Raises:
        RunError: the file is not a safetensors file.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file, self._where = file, where
        entries, start, end = self._header()
        self.tensors: dict[str, StoredTensor] = {}
        for name, entry in entries.items():
            try:
                first, last = entry["data_offsets"]
                stored = StoredTensor(DTYPES[entry["dtype"]], tuple(entry["shape"]), start + first)
                fits = 0 <= first <= last <= end - start and all(size >= 0 for size in stored.shape)
                if not fits or stored.nbytes != last - first:
                    raise ValueError
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"{where}: tensor {name!r}: not as safetensors describes one") from error
            self.tensors[name] = stored

    def _header(self) -> tuple[dict[str, Any], int, int]:
        """Reads the header: an entry for each tensor, the offset of the first tensor, and the end of the file."""
        self._file.seek(0)
        try:
            # A damaged length could ask for exabytes: compare it with the file's size before reading.
            size = int.from_bytes(self._file.read(8), "little")
            end = self._file.seek(0, os.SEEK_END)
            if size > end - 8:
                raise ValueError("its header is longer than the file")
            self._file.seek(8)
            entries = json.loads(self._file.read(size))
            if not isinstance(entries, dict):
                raise ValueError("its header is no object")
        except ValueError as error:
            raise RunError(f"{self._where}: no safetensors file: {error}") from error
        entries.pop("__metadata__", None)
        return entries, 8 + size, end

    def read(self, name: str) -> Tensor:
        """Reads a tensor. A large tensor is memory-mapped: the caller copies what it keeps.

        Raises:
            RunError: there is no memory for it.
        """
        stored = self.tensors[name]
        with self._explained(name):
            if stored.nbytes >= _MAPPED:
                return _mapped(self._file, stored)
            tensor = torch.empty(stored.shape, dtype=stored.dtype)
            self._read_into(stored.start, tensor)
            return tensor

    def read_box(self, name: str, offsets: Sequence[int], destination: Tensor) -> None:
        """Reads a box of a tensor, of the destination's shape, in bounded memory.

        Args:
            name: of the tensor.
            offsets: index of the box's first element.
            destination: any strides, dtype and device.

        Raises:
            RunError: the tensor cannot be read.
        """
        stored, destination = self.tensors[name], destination.detach()
        with self._explained(name):
            if not stored.shape:
                destination.copy_(self.read(name))
                return
            row_bytes = math.prod(stored.shape[1:]) * stored.dtype.itemsize
            start = stored.start + offsets[0] * row_bytes
            if destination.shape[1:] == stored.shape[1:] and _is_memory(destination, stored.dtype):
                self._read_into(start, destination)
                return
            rows = max(1, _BLOCK // max(1, row_bytes))
            for slice_ in torch.split(destination, rows):
                block = torch.empty(slice_.shape[0], *stored.shape[1:], dtype=stored.dtype)
                self._read_into(start, block)
                start += block.nbytes
                for dim, (offset, size) in enumerate(zip(offsets[1:], slice_.shape[1:], strict=True), start=1):
                    block = block.narrow(dim, offset, size)
                slice_.copy_(block)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Names the tensor in an error of reading it."""
        try:
            yield
        except (MemoryError, OSError, RuntimeError) as error:
            raise RunError(
                f"{self._where}: {name}: cannot be read: {error or 'no memory'}. It has "
                f"{self.tensors[name].nbytes:,} bytes; `exfm plan CONFIG` says what a process needs"
            ) from error

    def _read_into(self, start: int, tensor: Tensor) -> None:
        self._file.seek(start)
        left = tensor.flatten().view(torch.uint8).numpy().data
        # An unbuffered read returns at most 2 GiB on Linux, and fewer bytes at a signal.
        while left.nbytes:
            count = self._file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise OSError("the file ends before it")
            left = left[count:]


def read_tensors(file: BinaryIO, where: str, select: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Reads tensors of a file on a local disk. Large tensors are memory-mapped: the caller copies what it keeps.

    Args:
        file: unbuffered file.
        where: name of the file in error messages.
        select: tells by its name whether a tensor is read; by default all are read.

    Raises:
        RunError: the file is not a safetensors file, or there is no memory for a tensor.
    """
    opened = TensorFile(file, where)
    return {name: opened.read(name) for name in opened.tensors if select(name)}


def empty_tensor(shape: Sequence[int], dtype: torch.dtype, where: str) -> Tensor:
    """Allocates a tensor that files are put together in: a large one in an unnamed file, memory-mapped.

    So the system may write its pages out where memory is short, as it drops those of a mapped file.

    Args:
        where: name of the tensor in error messages.

    Raises:
        RunError: there is no room.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _MAPPED:
        return torch.empty(tuple(shape), dtype=dtype)
    folder = spool_folder()
    with tempfile.TemporaryFile(dir=folder) as file:
        with explain_full_disk(f"{folder}, {where} put together"):
            # Allocated now, because a write to a page that the disk has no room for would kill the process.
            os.posix_fallocate(file.fileno(), 0, nbytes)
        return torch.frombuffer(mmap.mmap(file.fileno(), nbytes), dtype=dtype).view(tuple(shape))


def _is_memory(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Tells whether bytes of a file can be read into a tensor: its memory is contiguous, on the CPU, of the dtype."""
    return tensor.dtype == dtype and tensor.device.type == "cpu" and tensor.is_contiguous()


def _mapped(file: BinaryIO, stored: StoredTensor) -> Tensor:
    # A mapping starts at a page: the bytes before the tensor are mapped too and skipped.
    skipped = stored.start % mmap.ALLOCATIONGRANULARITY
    # Copy on write: torch needs writable memory, and writes must not reach the committed file.
    pages = mmap.mmap(file.fileno(), skipped + stored.nbytes, access=mmap.ACCESS_COPY, offset=stored.start - skipped)
    count = math.prod(stored.shape)
    return torch.frombuffer(pages, dtype=stored.dtype, offset=skipped, count=count).view(stored.shape)
