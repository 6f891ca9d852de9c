"""Keeps the unit in which a head learns a number.

Legend: B examples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LabelUnit(nn.Module):
    """Maps a number to units of the first labels and back: ``z = (y - center) / scale``.

    A loss in these units is about 1 at the start, whatever the label's unit: seconds and milliseconds learn alike, and
    a task weighs no more than the others of its model. The unit stays, because a unit that moved would change the
    meaning of every weight.

    Args:
        scale: the size of a unit; by default the deviation of the first labels.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self._fixed = scale
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()) if scale is None else torch.full((), scale))

    @torch.no_grad()
    def fit(self, value_B: Tensor, weight_B: Tensor) -> None:
        """Sets center and scale to mean and deviation of the values, by their weights."""
        # In float64: the squares of large, close numbers lose their digits.
        value_B, weight_B = value_B.double(), weight_B.double()
        total = weight_B.sum()
        mean = (value_B * weight_B).sum() / total
        self.center.copy_(mean)
        if self._fixed is None:
            deviation = (((value_B - mean).square() * weight_B).sum() / total).sqrt()
            # All first labels may be equal: their size is then the best guess of how far others are.
            size = torch.where(mean.abs() > 0, mean.abs(), 1.0)
            self.scale.copy_(torch.where(deviation > 1e-6 * size, deviation, size))

    def to_unit(self, value: Tensor) -> Tensor:
        """Returns numbers in units."""
        return (value - self.center) / self.scale

    def from_unit(self, unit: Tensor) -> Tensor:
        """Returns the numbers of units, the inverse of ``to_unit``."""
        return self.center + self.scale * unit
