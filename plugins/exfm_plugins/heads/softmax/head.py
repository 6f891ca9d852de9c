"""A softmax over classes as an exfm task head.

Legend: B examples, C classes.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

import exfm
from exfm.schema import Label

_EPSILON = 1e-7  # the smallest probability whose logarithm is taken, about where float32 ends next to 1


class Softmax(exfm.TaskHead):
    """Cross-entropy of a softmax over the classes of a label, such as the action that a user takes.

    With the outputs ``z`` (B, C) and the class ``y``::

        loss = -log softmax(z)_y      prediction = softmax(z), a probability per class

    A teacher teaches all its probabilities ``p``: ``-sum_c p_c log softmax(z)_c`` (arXiv 1503.02531 at temperature 1).
    The bias starts at the logarithms of the classes' frequencies among the first labels, with one more of each class
    (Laplace's rule of succession).

    Args:
        config: it has no fields.
        label: the label, with its ``classes``.
    """

    name: ClassVar[str] = "softmax"
    label_kind = "multiclass"
    is_default = True
    invertible = True

    class Config(exfm.ComponentConfig):
        """Fields of `softmax`."""

    def __init__(self, config: Config, label: Label) -> None:
        super().__init__(config, label)
        self.num_outputs = label.width

    def start(self, label_B: Tensor, weight_B: Tensor) -> Tensor:
        """Returns the logarithms of the classes' frequencies."""
        counts_C = (one_hot(label_B.long(), self.num_outputs) * weight_B.unsqueeze(1)).sum(dim=0) + 1.0
        return (counts_C / counts_C.sum()).log()

    def loss(self, output: Tensor, label_B: Tensor) -> Tensor:
        """Returns the log loss (B,) of the true class."""
        return cross_entropy(output, label_B.long(), reduction="none")

    def predict(self, output: Tensor) -> Tensor:
        """Returns the probabilities (B, C)."""
        return output.softmax(dim=1)

    def soft_loss(self, output: Tensor, prediction: Tensor) -> Tensor:
        """Returns the cross-entropy (B,) with the teacher's probabilities (B, C)."""
        return -(prediction * output.log_softmax(dim=1)).sum(dim=1)

    def output_of(self, prediction: Tensor) -> Tensor:
        """Returns the logarithms of probabilities, whose softmax they are."""
        return prediction.clamp(min=_EPSILON).log()
