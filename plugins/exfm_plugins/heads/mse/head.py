"""The squared error as an exfm task head.

Legend: B examples.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from exfm_plugins.heads.value_in_units import ScaleConfig, ValueInUnits


class MSE(ValueInUnits):
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
    is_default = True

    class Config(ScaleConfig):
        """Fields of `mse`."""

    def loss(self, output: Tensor, label_B: Tensor) -> Tensor:
        """Returns half the squared error (B,) in units."""
        return (output - self.unit.to_unit(label_B)).square() / 2
