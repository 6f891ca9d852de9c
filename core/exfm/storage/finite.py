"""Numbers that are not finite: found in what would be committed, and in snapshots that hold some all the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from exfm.errors import RunError
from exfm.storage.snapshots import Snapshot


def first_not_finite(tensors: Mapping[str, Tensor], constants: Collection[str] = ()) -> str:
    """The first name whose tensor holds NaN or an infinity; an empty string where there is none.

    Args:
        constants: names that are left out, see ``infinite_buffers``.
    """
    return next((name for name, tensor in tensors.items() if name not in constants and not is_finite(tensor)), "")


def infinite_buffers(module: nn.Module) -> frozenset[str]:
    """Names of a new module's buffers that are not finite on purpose, such as a mask of minus infinity."""
    buffers = ((name, buffer) for name, buffer in module.named_buffers() if not buffer.is_meta)
    return frozenset(name for name, buffer in buffers if not is_finite(buffer))


def is_finite(tensor: Tensor) -> bool:
    """Whether all of its values are finite.

    One pass without intermediate results: the smallest and the largest value of a tensor that holds NaN are NaN.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    lowest, highest = torch.aminmax(tensor)
    return bool(lowest.isfinite() & highest.isfinite())


def check_snapshot(snapshot: Snapshot, tensors: Mapping[str, Tensor], constants: Collection[str], where: str) -> None:
    """Checks that a snapshot's tensors are finite: exfm 0.1.0 committed models that had diverged.

    Args:
        constants: names that are left out, see ``infinite_buffers``.
        where: the run's folder.

    Raises:
        RunError: one is not.
    """
    if name := first_not_finite(tensors, constants):
        raise RunError(
            f"{where}: the snapshot of {snapshot.model!r} after window {snapshot.version} is not finite: {name} holds "
            "NaN or infinite values. The model diverged, and what it taught since is of no use: train it again in "
            f"another run_dir with a lower rate, such as models.{snapshot.model.partition('.')[0]}.optimizer.dense.lr"
        )
