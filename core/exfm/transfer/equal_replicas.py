"""Checks that a student's strategies are the same in every process.

Each process computes a strategy's losses of its rows. A strategy that keeps statistics of these rows, and says that
it decomposes, would become another in each process, and the saved state would be that of rank zero's rows.

Legend: S strategies, R processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from exfm.errors import RunError
from exfm.interfaces.process_group import ProcessGroup
from exfm.interfaces.transfer_strategy import TransferStrategy


def check_equal_replicas(model: str, strategies: Sequence[TransferStrategy], process_group: ProcessGroup) -> None:
    """Compares parameters and buffers of a model's strategies over the processes.

    Raises:
        RunError: those of a strategy differ; on every process.
    """
    if process_group.world_size == 1 or not strategies:
        return
    digests_SR = process_group.all_gather(torch.tensor([_digest(strategy) for strategy in strategies])).T.tolist()
    for number, (strategy, digests_R) in enumerate(zip(strategies, digests_SR, strict=True)):
        if len(set(digests_R)) > 1:
            raise RunError(
                f"models.{model}.transfer.{number}: {strategy.name}: its parameters or buffers differ between the "
                f"{process_group.world_size} processes: it keeps something of a batch's rows, of which each process "
                "has others. Its property `decomposes` must be False, or it must update its buffers from `sums` "
                "alone; `exfm.testing.DistillationStrategyTests` says which. Until then train it in one process"
            )


def _digest(strategy: TransferStrategy) -> int:
    digest = hashlib.blake2b(digest_size=7)  # 56 bits, which an int64 holds
    for name, value in strategy.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    return int.from_bytes(digest.digest())


def _bytes(value: Tensor) -> bytes:
    # As bytes, because numpy has no bfloat16.
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
