"""Tensors as a safetensors file, written from where they lie: the library's own writer first copies them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

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
_ALIGNMENT = 8


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
