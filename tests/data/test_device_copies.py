"""Copies of batches ahead of their use; on a CPU torch's streams do nothing, and a batch is its own copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from exfm.data.batch import Batch
from exfm.data.device_copies import DeviceCopies
from tests.modeling.cases import EVERYTHING, random_batch, schema_of

CPU = torch.device("cpu")


class Moved:
    """A batch that is copied to a CPU as to another device."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def to(self, device: torch.device, non_blocking: bool = False) -> Moved:
        self.log.append(f"copy {self.name}{'' if non_blocking else ' and wait'}")
        return Moved(f"{self.name}'", self.log)

    def pin_memory(self) -> Moved:
        raise AssertionError

    def record_stream(self, stream: torch.Stream) -> None:
        raise AssertionError


def test_each_copy_starts_before_the_batch_ahead_is_used() -> None:
    log: list[str] = []
    copies = DeviceCopies[Moved](CPU)
    for batch in copies.ahead((Moved(name, log) for name in "abc"), lambda batch: batch):
        # A step and the statistics after it take the same copy.
        assert copies.take(batch) is copies.take(batch)
        log.append(f"use {copies.take(batch).name}")
    assert log == ["copy a", "copy b", "use a'", "copy c", "use b'", "use c'"]


def test_a_batch_that_was_replaced_is_copied_when_it_is_used() -> None:
    log: list[str] = []
    copies = DeviceCopies[Moved](CPU)
    for batch in copies.ahead((Moved(name, log) for name in "abcd"), lambda batch: batch):
        assert copies.take(Moved(batch.name.upper(), log)).name == f"{batch.name.upper()}'"
    assert [entry for entry in log if entry.endswith("wait")] == [f"copy {name} and wait" for name in "ABCD"]
    assert len(copies._started) == 2  # the copies that nobody took do not add up


def test_batches_are_used_as_they_are_on_a_cpu() -> None:
    copies = DeviceCopies[Batch](CPU)
    batches = [random_batch(schema_of(*EVERYTHING), 5, seed) for seed in range(3)]

    def read() -> Iterator[Batch]:
        yield from batches

    assert all(copies.take(batch) is batch for batch in copies.ahead(read(), lambda batch: batch))


def test_every_tensor_goes_to_another_device() -> None:
    batch = random_batch(schema_of(*EVERYTHING), 5)
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert moved.size == batch.size
    tensors = [moved.example_id, moved.event_time_us, moved.group, moved.dense_BF, moved.sparse.values()]
    tensors += [*moved.labels.values(), *moved.oracle.values(), *moved.weights.values(), *moved.vectors.values()]
    for name, sequence in moved.sequences.items():
        tensors += [sequence.ids_EC, sequence.dense_EG, sequence.offsets]
        assert sequence.ids_EC.shape == batch.sequences[name].ids_EC.shape
    assert {tensor.device.type for tensor in tensors} == {"meta"}
