"""Huber's loss as an exfm task head.

Legend: B examples.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import huber_loss

from exfm.schema import Label
from exfm_plugins.heads.value_in_units import ScaleConfig, ValueInUnits


class Huber(ValueInUnits):
    """Huber's loss (1964): squared near the label, linear from a distance on, so that outliers pull no harder.

    With ``z`` the output, ``c`` and ``s`` the mean and the deviation of the labels of the first batch with any, and the
    distance ``r = |z - (y - c) / s|``::

        loss = r^2 / 2 where r <= delta, else delta (r - delta / 2)      prediction = c + s z

    The optimum lies between mean (large delta) and median (small delta): of a skewed label the predictions are too low
    on average, which calibration shows. The unit is ours, as in `mse`.

    Args:
        config: see ``Config``.
        label: the label.
    """

    name: ClassVar[str] = "huber"

    class Config(ScaleConfig):
        """Fields of `huber`."""

        delta: float = Field(
            1.0, gt=0, allow_inf_nan=False, description="Distance, in units, from which on the loss is linear."
        )

    def __init__(self, config: Config, label: Label) -> None:
        super().__init__(config, label)
        self._delta = config.delta

    def loss(self, output: Tensor, label_B: Tensor) -> Tensor:
        """Returns Huber's loss (B,) in units."""
        target_B = self.unit.to_unit(label_B).to(output.dtype)
        return huber_loss(output, target_B, reduction="none", delta=self._delta)
