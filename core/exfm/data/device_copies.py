"""Copies batches to a device while it computes on the batches before them; torch is all that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch


class Copyable(Protocol):
    """Tensors that are copied together."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Copies the tensors to a device; returns the object itself where they are on the device already."""

    def pin_memory(self) -> Self:
        """Copies the tensors to page-locked memory, from which a GPU copies while it computes."""

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the tensors' memory until a stream has passed this point."""


Source = TypeVar("Source", bound=Copyable)
Item = TypeVar("Item")


@dataclass(frozen=True)
class _Copy(Generic[Source]):
    """A batch, its copy on the device, and the event after which the copy is complete."""

    source: Source
    copy: Source
    event: Any


class DeviceCopies(Generic[Source]):
    """Copies batches to a device on a side stream.

    On a CPU there is nothing to copy: torch's streams do nothing there, and a batch is its own copy.

    Args:
        device: the device of the copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch.cuda on a GPU; torch.cpu has streams too, which do nothing.
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream()
        self._asynchronous = device.type != "cpu"
        self._started: list[_Copy[Source]] = []

    def start(self, batch: Source) -> None:
        """Starts to copy a batch, and returns at once."""
        source = batch.pin_memory() if self._asynchronous else batch
        with self._module.stream(self._stream):
            copy = source.to(self._device, non_blocking=True)
        # At most two, so that copies that nobody takes do not fill the device.
        self._started = [*self._started[-1:], _Copy(batch, copy, self._stream.record_event())]

    def take(self, batch: Source) -> Source:
        """Returns the copy of a batch, which the device has before any later work of the current stream.

        Copies that were started before it are dropped. A batch whose copy was not started is copied now.
        """
        position = next((index for index, started in enumerate(self._started) if started.source is batch), None)
        if position is None:
            return batch.to(self._device)
        # The copy itself is kept, because a step and the statistics after it take the same batch.
        self._started = self._started[position:]
        started, current = self._started[0], self._module.current_stream()
        current.wait_event(started.event)
        if self._asynchronous:
            # Allocated on the side stream: its memory must not be reused before the current stream has read it.
            started.copy.record_stream(current)
        return started.copy

    def ahead(self, items: Iterable[Item], batch_of: Callable[[Item], Source]) -> Iterator[Item]:
        """Yields items; the copy of an item's batch is started before the item ahead of it is yielded."""
        waiting: list[Item] = []
        for item in items:
            self.start(batch_of(item))
            yield from waiting
            waiting = [item]
        yield from waiting
