"""Gives heads that predict a value from an output in units of the label.

Legend: B examples.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

import exfm
from exfm.layers import LabelUnit
from exfm.schema import Label


class ScaleConfig(exfm.ComponentConfig):
    """Configures the unit of a head's loss."""

    scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="s: the unit of the loss, in that of the label; by default the deviation of the first labels.",
    )


class ValueInUnits(exfm.TaskHead):
    """Predicts a value from an output in units of the first labels.

    Args:
        config: gives the unit, if it is not the deviation of the first labels.
        label: the label.
    """

    label_kind = "regression"
    invertible = True

    def __init__(self, config: ScaleConfig, label: Label) -> None:
        super().__init__(config, label)
        self.unit = LabelUnit(config.scale)

    def start(self, label_B: Tensor, weight_B: Tensor) -> Tensor:
        """Sets the unit; an output of 0 is then the mean of the first labels."""
        self.unit.fit(label_B, weight_B)
        return self.unit.center.new_zeros(1)

    def predict(self, output: Tensor) -> Tensor:
        """Returns the predicted value (B,)."""
        return self.unit.from_unit(output)

    def output_of(self, prediction: Tensor) -> Tensor:
        """Returns the predictions in units."""
        return self.unit.to_unit(prediction)
