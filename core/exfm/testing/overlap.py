"""Calls that overlap, and always at the same places: threads that run freely meet where chance will have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Between(TorchDispatchMode):
    """Between the operations of this thread, lets another one make a whole call.

    Args:
        call: what the other thread does.
        every: before how many operations it does it once; 0: never.

    Attributes:
        operations: how many this thread has done so far.
    """

    def __init__(self, call: Callable[[], None], every: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self._call, self._every = call, every

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Does the operation, and before it what is due."""
        if self._every and self.operations % self._every == 0:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._call).result()
        self.operations += 1
        return func(*args, **(kwargs or {}))
