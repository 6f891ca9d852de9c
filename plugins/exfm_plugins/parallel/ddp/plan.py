"""Every process keeps the whole model and computes its rows of each batch."""

from __future__ import annotations

from typing import ClassVar

from exfm.parallel import DataParallelPlan


class Ddp(DataParallelPlan):
    """Data parallel: every process keeps the whole model, and all make the same step.

    Gradients of dense layers are averaged over the processes after the backward pass; each of them updates all tables
    with the looked-up rows' gradients of all. Losses, predictions and weights are those of `single` with the same
    batches, but for the order in which numbers are added. For models that fit on one device.
    """

    name: ClassVar[str] = "ddp"

    class Config(DataParallelPlan.Config):
        """Fields of `ddp`."""
