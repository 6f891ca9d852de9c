"""A log-normal label as an exfm task head.

Legend: B examples, K = 2 outputs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

import exfm
from exfm.layers import LabelUnit
from exfm.schema import Label

_LOG_SCALES = 4.0  # the deviation is between 1/55 and 55 units
_LARGEST = 80.0  # e^80 is a float32, and e^89 is not


class LogNormal(exfm.TaskHead):
    """The logarithm of a number from 0 on is normal: its mean and deviation are learned, its expected value is served.

    For watch times, prices and counts, whose errors are factors. With ``t = log(1 + y)``, ``c`` and ``s`` its mean and
    deviation over the first labels, and the outputs ``z_1`` and ``z_2``::

        m = c + s z_1      v = s^2 exp(2 z_2)
        loss = (t - m)^2 / 2 v + z_2            that is -log N(t; m, v), less log s and a constant
        prediction = exp(m + v / 2) - 1         the expected value of y

    A teacher's prediction ``p`` says nothing of the deviation, so its loss is ``(m + v / 2 - log(1 + p))^2 / 2 s^2``,
    which is least where both predict alike (ours). ``z_2`` is clipped to 4 from 0, and the exponent at 80.

    Args:
        config: it has no fields.
        label: the label, with a minimum of 0 or more.

    Raises:
        ValueError: the label has no minimum, so that its logarithm need not exist.
    """

    name: ClassVar[str] = "log_normal"
    label_kind = "regression"

    class Config(exfm.ComponentConfig):
        """Fields of `log_normal`."""

    def __init__(self, config: Config, label: Label) -> None:
        super().__init__(config, label)
        if label.minimum is None or label.minimum < 0:
            raise ValueError(
                f"log_normal: the label {label.name} has minimum: {label.minimum}; give it minimum: 0 in the schema, "
                "so that rows below it are bad rows, or another head, such as mse"
            )
        self._least = label.minimum
        self.num_outputs = 2
        self.unit = LabelUnit()

    def start(self, label_B: Tensor, weight_B: Tensor) -> Tensor:
        """Sets the unit of the logarithm; outputs of 0 are then mean and deviation of the first labels."""
        self.unit.fit(label_B.log1p(), weight_B)
        return self.unit.center.new_zeros(2)

    def loss(self, output: Tensor, label_B: Tensor) -> Tensor:
        """Returns the negative log likelihood (B,) in units, without its constant."""
        mean_B, log_scale_B = self._moments(output)
        target_B = self.unit.to_unit(label_B.log1p())
        return (target_B - mean_B).square() * (-2 * log_scale_B).exp() / 2 + log_scale_B

    def predict(self, output: Tensor) -> Tensor:
        """Returns the expected value (B,)."""
        return self._log_expected(output).clamp(max=_LARGEST).expm1()

    def soft_loss(self, output: Tensor, prediction: Tensor) -> Tensor:
        """Returns half the squared difference (B,) of the logarithms of both predictions, in units."""
        # A teacher with another head may predict less than any label is.
        target_B = prediction.clamp(min=self._least).log1p()
        return ((self._log_expected(output) - target_B) / self.unit.scale).square() / 2

    def _moments(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and logarithm of the deviation (B,) of the label's logarithm, in units."""
        mean_B, log_scale_B = output.unbind(1)
        return mean_B, log_scale_B.clamp(-_LOG_SCALES, _LOG_SCALES)

    def _log_expected(self, output: Tensor) -> Tensor:
        """Returns the logarithm (B,) of 1 plus the expected value."""
        mean_B, log_scale_B = self._moments(output)
        variance_B = self.unit.scale.square() * torch.exp(2 * log_scale_B)
        return self.unit.from_unit(mean_B) + variance_B / 2
