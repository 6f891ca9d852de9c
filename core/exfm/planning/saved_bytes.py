"""Counts the memory that a forward pass saves for its backward pass; torch is all that it needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def saved_bytes(call: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Counts the bytes that a call saves for the backward pass, each storage once and parameters not at all."""
    excluded: Collection[int] = set(map(_key, parameters))
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _key(tensor) not in excluded:
            kept[_key(tensor)] = tensor  # a reference, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def make_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replaces parameters and buffers of floating-point numbers by fake tensors, and others by zeros, in place."""
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            setattr(child, name, nn.Parameter(_fake(parameter, mode), parameter.requires_grad))
        for name, buffer in child.named_buffers(recurse=False):
            setattr(child, name, _fake(buffer, mode))


def _key(tensor: Tensor) -> int:
    """Returns the address of a tensor's storage object; fake tensors have no address of data."""
    address: int = tensor.untyped_storage()._cdata
    return address


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    with mode:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
