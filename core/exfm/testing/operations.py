"""Records the operations of a call: the sizes of their results, their memory after the call, and their device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_HERE = torch.device("cpu", 0)
"""The device of all tensors under ``Elsewhere``: the CPU, spelled ``cpu:0``, which no component writes."""


class Operations(TorchDispatchMode):
    """Records the operations of this thread while it is entered.

    Attributes:
        sizes: the name of each operation in turn, and the number of elements of its largest result.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[tuple[str, int]] = []
        self._memory: dict[Any, tuple[str, Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Executes the operation, and records it."""
        result = func(*args, **(kwargs or {}))
        leaves = [result] if isinstance(result, Tensor) else tree_leaves(result)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.sizes.append((str(func), max((tensor.numel() for tensor in tensors), default=0)))
        for tensor in tensors:
            # Weak, so that recording does not keep memory that the component frees.
            memory = _weakly(tensor)
            self._memory.setdefault(memory.cdata, (str(func), memory))
        return result

    def left(self, lasting: Iterable[Tensor]) -> list[str]:
        """Lists the operations whose results are still in memory, except views of ``lasting``."""
        others = {_weakly(tensor).cdata for tensor in lasting}
        return [name for key, (name, memory) in self._memory.items() if key not in others and not memory.expired()]


class Elsewhere(TorchFunctionMode):
    """Finds tensors that would be on the CPU if a network and its inputs were on another device.

    Attributes:
        met: names of operations that would have inputs on both devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []
        self._on_cpu: dict[int, Tensor] = {}  # holds them, so that no other tensor gets the same id

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Executes the operation, and tracks tensors that would be on the CPU."""
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if func == torch.Tensor.device.__get__:
            return result if self.stays(args[0]) else _HERE
        # Operations accept scalars, tensors without dimensions, of another device.
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        staying = [leaf for leaf in tensors if self.stays(leaf)]
        moves = _moves_to(func, args, kwargs, makes=not tensors)
        if moves is not None:
            stays = moves != _HERE
        else:
            stays = bool(staying)
            if len(staying) not in (0, len(tensors)) and not _may_mix(func):
                self.met.append(getattr(func, "__name__", str(func)))
        if stays:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.dim():
                    self._on_cpu[id(leaf)] = leaf
        elif moves is not None and self.stays(result):
            # `to` returned its input, which is on the CPU here; a view is a tensor with another id.
            result = result.view_as(result)
        return result

    def stays(self, tensor: Tensor) -> bool:
        """Returns whether a tensor would be on the CPU."""
        return id(tensor) in self._on_cpu


def _weakly(tensor: Tensor) -> Any:
    """Returns a weak reference to a tensor's memory."""
    reference: Any = StorageWeakRef
    return reference(tensor.untyped_storage())


def _moves_to(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, makes: bool
) -> torch.device | None:
    """Returns the device of a function's result where the call sets it; None where the inputs decide."""
    if func is torch.Tensor.cpu:
        return torch.device("cpu")
    if func is torch.Tensor.to:
        devices = [leaf for leaf in (*args[1:], kwargs.get("device")) if isinstance(leaf, str | torch.device)]
        return torch.device(devices[0]) if devices else None
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    return torch.device("cpu") if makes and func in _device_constructors() else None


def _may_mix(func: Callable[..., Any]) -> bool:
    """Returns whether a function accepts tensors of both devices: indices may be on the CPU, copies cross devices."""
    return func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.copy_)


def plain_tensors(module: nn.Module) -> Iterator[str]:
    """Yields the names of tensors that are attributes of a module, and neither parameters nor buffers."""
    for name, submodule in module.named_modules():
        for attribute, value in vars(submodule).items():
            # torch stores parameters and buffers in attributes that begin so.
            if attribute.startswith("_"):
                continue
            if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                yield f"{name}.{attribute}" if name else attribute
