"""The operations of a call: how large their results are, what is left of them, and on which device they are made."""

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
"""The device of all tensors under ``Elsewhere``: the CPU, in a spelling that nobody writes by hand."""


class Operations(TorchDispatchMode):
    """Notes the operations of this thread while it is entered.

    Attributes:
        sizes: of each in turn, its name and the numbers in its largest result.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[tuple[str, int]] = []
        self._memory: dict[Any, tuple[str, Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Does the operation, and notes it."""
        result = func(*args, **(kwargs or {}))
        leaves = [result] if isinstance(result, Tensor) else tree_leaves(result)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.sizes.append((str(func), max((tensor.numel() for tensor in tensors), default=0)))
        for tensor in tensors:
            memory = _weakly(tensor)
            self._memory.setdefault(memory.cdata, (str(func), memory))
        return result

    def left(self, lasting: Iterable[Tensor]) -> list[str]:
        """Names of the operations whose results are in memory still, but for those that are views of ``lasting``."""
        others = {_weakly(tensor).cdata for tensor in lasting}
        return [name for key, (name, memory) in self._memory.items() if key not in others and not memory.expired()]


class Elsewhere(TorchFunctionMode):
    """Finds tensors that would stay on the CPU if a network and its inputs were on another device.

    Attributes:
        met: of operations that would meet tensors of both devices, what they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []
        self._on_cpu: dict[int, Tensor] = {}  # holds them, so that no other tensor gets the same id

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Does the operation, and follows what is made on the CPU."""
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if func == torch.Tensor.device.__get__:
            return result if self.stays(args[0]) else _HERE
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
            self._on_cpu |= {id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.dim()}
        elif moves is not None:
            result = result.view_as(result) if self.stays(result) else result  # what `to` gives back as it is
        return result

    def stays(self, tensor: Tensor) -> bool:
        """Whether a tensor would be on the CPU."""
        return id(tensor) in self._on_cpu


def _weakly(tensor: Tensor) -> Any:
    """A weak reference to a tensor's memory."""
    reference: Any = StorageWeakRef
    return reference(tensor.untyped_storage())


def _moves_to(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, makes: bool
) -> torch.device | None:
    """The device that a function puts its result on, where it chooses it; None where its inputs decide."""
    if func is torch.Tensor.cpu:
        return torch.device("cpu")
    if func is torch.Tensor.to:
        devices = [leaf for leaf in (*args[1:], kwargs.get("device")) if isinstance(leaf, str | torch.device)]
        return torch.device(devices[0]) if devices else None
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    return torch.device("cpu") if makes and func in _device_constructors() else None


def _may_mix(func: Callable[..., Any]) -> bool:
    """Whether a function takes tensors of the CPU beside those of another device: as indices."""
    return func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.copy_)


def plain_tensors(module: nn.Module) -> Iterator[str]:
    """Names of tensors that are attributes of a module and neither parameters nor buffers."""
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute.startswith("_"):
                continue
            if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                yield f"{name}.{attribute}" if name else attribute
