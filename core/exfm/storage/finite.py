"""Detects NaN and infinite values in tensors before they are committed, and in snapshots that are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from exfm.errors import RunError
from exfm.interfaces.local_shards import StateTensor, local_boxes
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.storage.snapshots import Snapshot


def first_not_finite(tensors: Mapping[str, StateTensor], constants: Collection[str] = ()) -> str:
    """Returns the first name whose tensor holds NaN or an infinity, or an empty string.

    Args:
        tensors: tensors by name; of a sharded tensor this process's boxes are checked.
        constants: names to skip, see ``infinite_buffers``.
    """
    for name, tensor in tensors.items():
        if name not in constants and not all(map(is_finite, local_boxes(tensor).values())):
            return name
    return ""


def infinite_buffers(module: nn.Module) -> frozenset[str]:
    """Returns the names of a new module's buffers that are infinite by design, such as a mask of minus infinity."""
    names: set[str] = set()
    for name, buffer in module.named_buffers():
        if not buffer.is_meta and not is_finite(buffer):
            names.add(name)
    return frozenset(names)


def is_finite(tensor: Tensor) -> bool:
    """Tells whether all values of a tensor are finite."""
    # A single pass without a mask in memory: minimum and maximum of a tensor that holds NaN are NaN.
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    lowest, highest = torch.aminmax(tensor)
    return bool(lowest.isfinite() & highest.isfinite())


def check_snapshot(
    snapshot: Snapshot,
    tensors: Mapping[str, StateTensor],
    constants: Collection[str],
    where: str,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Checks that a snapshot's tensors are finite: exfm 0.1.0 committed models that had diverged.

    Args:
        snapshot: the snapshot that the tensors belong to.
        tensors: tensors by name, see ``first_not_finite``.
        constants: names to skip, see ``infinite_buffers``.
        where: the run's folder, for the error.
        process_group: the processes that have read it.

    Raises:
        RunError: a tensor is not finite.
    """
    if name := first_on_any(process_group, first_not_finite(tensors, constants)):
        raise RunError(
            f"{where}: the snapshot of {snapshot.model!r} after window {snapshot.version} is not finite: {name} holds "
            "NaN or infinite values. The model diverged, and what it taught since is of no use: train it again in "
            f"another run_dir with a lower rate, such as models.{snapshot.model.partition('.')[0]}.optimizer.dense.lr"
        )


def first_on_any(process_group: ProcessGroup, name: str) -> str:
    """Returns, on every process, the first name that a process has found, or an empty string."""
    names = [data.decode() for data in process_group.gather_bytes(name.encode()) if data]
    return process_group.broadcast_bytes(names[0].encode() if names else b"").decode()


def rows_not_finite(columns: Sequence[Tensor]) -> int:
    """Counts the S rows of columns, (S,) or (S, K), that hold a number that is not finite."""
    wrong: list[Tensor] = []
    for column in columns:
        if not is_finite(column):  # first without a mask in memory, because nearly all are finite
            wrong.append(~column.isfinite().view(column.shape[0], -1).all(dim=1))
    if not wrong:
        return 0
    return int(torch.stack(wrong).any(dim=0).sum())
