"""Every process stores the whole model and computes its rows of each batch."""

from __future__ import annotations

from typing import ClassVar

from exfm.parallel import DataParallelPlan


class Ddp(DataParallelPlan):
    """Data parallel: every process stores the whole model, and all take the same steps.

    Gradients of dense layers are averaged over the processes after the backward pass; each process updates all
    tables with the gradients of the rows that all processes looked up. Losses, predictions and weights are those of
    `single` with the same batches, except that sums are in another order. For models that fit on a device.
    """

    name: ClassVar[str] = "ddp"

    class Config(DataParallelPlan.Config):
        """Fields of `ddp`."""
