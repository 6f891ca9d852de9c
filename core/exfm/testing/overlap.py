"""Interleaves calls of two threads at fixed operations, because free threads would interleave at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class InterleavedCalls(TorchDispatchMode):
    """Executes a whole call in another thread between operations of this thread.

    Args:
        call: executed in the other thread.
        every: the number of operations of this thread from a call to the next; 0 for no calls.

    Attributes:
        operations: the number of operations of this thread so far.
    """

    def __init__(self, call: Callable[[], None], every: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self._call, self._every = call, every

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Executes the operation, after a call of the other thread where it is due."""
        if self._every and self.operations % self._every == 0:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._call).result()
        self.operations += 1
        return func(*args, **(kwargs or {}))
