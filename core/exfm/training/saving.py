"""Writing what is committed, at once or while training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor


class Writable(Protocol):
    """Something that waits to be written."""

    def write(self) -> None:
        """Writes it."""

    def discard(self) -> None:
        """Leaves nothing behind of what was not completed."""


class Copies:
    """Copies of tensors by name, in memory that the next copies take again: new memory costs more than the copying."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies, which hold until the next call."""
        self._kept = {name: self._room(name, tensor).copy_(tensor) for name, tensor in tensors.items()}
        return self._kept

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            return torch.empty_like(tensor)
        return kept


class Saving:
    """Does the writing of one window after the other, in order; a window's begins when the one before it has ended.

    Args:
        background: whether the caller goes on meanwhile. What it hands over must then be its own copy, which it may
            make when ``wait`` has returned.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._thread = ThreadPoolExecutor(1, "saving") if background else None
        self._writing: Future[None] | None = None

    def do(self, ended: Sequence[Writable]) -> None:
        """Writes what each stage leaves of a window, in order, up to the first that fails.

        Raises:
            Exception: what the writing of this window has failed with, or in the background that of the one before.
        """
        self.wait()
        if self._thread is None:
            _write(ended)
        else:
            self._writing = self._thread.submit(_write, ended)

    def settle(self) -> None:
        """Returns when nothing is being written any more; what the writing has failed with is left to ``wait``."""
        if self._writing is not None:
            wait([self._writing])

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            Exception: what the writing has failed with.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _write(ended: Sequence[Writable]) -> None:
    with ExitStack() as stack:
        for one in ended:
            stack.callback(one.discard)
        for one in ended:
            one.write()
