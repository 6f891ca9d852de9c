"""The squared error as an exfm task head.

Legend: B examples.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

import exfm
from exfm.layers import LabelUnit
from exfm.schema import Label


class MSE(exfm.TaskHead):
    """Squared error: the output is the expected value, in units of the first labels.

    With ``z`` the output, ``c`` and ``s`` the mean and the deviation of the labels of the first batch with any::

        loss = (z - (y - c) / s)^2 / 2      prediction = c + s z

    The optimum is the expected value, whatever the distribution of the label. Large labels of a heavy tail dominate it:
    ``huber`` bounds their pull, ``log_normal`` predicts on a scale of factors.

    The unit is ours: at the start the loss is about 0.5, near the 0.7 of a binary task, whatever the label's unit.

    Args:
        config: see ``Config``.
        label: the label.
    """

    name: ClassVar[str] = "mse"
    label_kind = "regression"
    is_default = True
    invertible = True

    class Config(exfm.ComponentConfig):
        """Fields of `mse`."""

        scale: float | None = Field(
            None,
            gt=0,
            allow_inf_nan=False,
            description="s: the unit of the loss, in that of the label; by default the deviation of the first labels.",
        )

    def __init__(self, config: Config, label: Label) -> None:
        super().__init__(config, label)
        self.unit = LabelUnit(config.scale)

    def start(self, label_B: Tensor, weight_B: Tensor) -> Tensor:
        """Sets the unit; an output of 0 is then the mean of the first labels."""
        self.unit.fit(label_B, weight_B)
        return self.unit.center.new_zeros(1)

    def loss(self, output: Tensor, label_B: Tensor) -> Tensor:
        """Returns half the squared error (B,) in units."""
        return (output - self.unit.to_unit(label_B)).square() / 2

    def predict(self, output: Tensor) -> Tensor:
        """Returns the expected value (B,)."""
        return self.unit.from_unit(output)

    def output_of(self, prediction: Tensor) -> Tensor:
        """Returns the predictions in units."""
        return self.unit.to_unit(prediction)
