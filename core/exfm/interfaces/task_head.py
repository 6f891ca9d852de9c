"""TaskHead: the mathematics of a label: the number of its head's outputs, their prediction, and the loss of a label.

Legend: B examples, K outputs of the head, W numbers of a prediction.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.network import Network
from exfm.interfaces.schema import LABEL_KINDS, Label, LabelKind


class TaskHead(Network):
    """Defines the meaning of a head's outputs, their losses against labels and teachers, and the served value.

    The core owns the layers of the head, whose outputs are (B,) for K = 1 and (B, K) for more, and averages the losses
    with the weights of the examples. A component has no parameters. It may have buffers that ``start`` sets, such as
    the unit of the label; they are part of every snapshot and of the served graph.

    A prediction is (B,), a probability or an expected value in the unit of the label; of a multiclass label it is
    (B, W), a probability per class. Predictions are stored as supervision, scored and served. So models with different
    heads of a label teach each other, and are compared by the same figures.

    Attributes:
        label_kind: the kind of label that it learns.
        is_default: whether tasks of its kind without a head in the experiment get it.
        invertible: whether ``output_of`` exists.
        label: the label, whose ``classes`` a multiclass head needs.
        num_outputs: K; a head of a binary label has a single output, the logit of its probability.
        started: whether ``start`` has been called; the core sets it. Before, nothing is distilled.
    """

    kind: ClassVar[str] = "task_head"
    label_kind: ClassVar[LabelKind]
    is_default: ClassVar[bool] = False
    invertible: ClassVar[bool] = False
    config: ComponentConfig
    label: Label
    num_outputs: int
    started: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "name") and getattr(cls, "label_kind", None) not in LABEL_KINDS:
            allowed = ", ".join(sorted(LABEL_KINDS))
            raise TypeError(f"{cls.__qualname__}.label_kind must be the kind of label that it learns: {allowed}")

    def __init__(self, config: ComponentConfig, label: Label) -> None:
        nn.Module.__init__(self)
        self.config, self.label, self.num_outputs = config, label, 1
        self.register_buffer("started", torch.tensor(False))

    @abstractmethod
    def start(self, label_B: Tensor, weight_B: Tensor) -> Tensor:
        """Sets the buffers from the first labels, and returns the bias (K,) of the last layer to start from.

        Args:
            label_B: the labels of the first batch that has any; where none is known, the value has no meaning.
            weight_B: the weight of each example, 0 where its label is not known.
        """

    @abstractmethod
    def loss(self, output: Tensor, label_B: Tensor) -> Tensor:
        """Returns the loss (B,) of each example, finite for each label of the kind."""

    @abstractmethod
    def predict(self, output: Tensor) -> Tensor:
        """Returns the predictions, (B,) or (B, W)."""

    def soft_loss(self, output: Tensor, prediction: Tensor) -> Tensor:
        """Returns the loss (B,) of each example against a teacher's prediction; by default that of an equal label.

        It is smallest where ``predict`` gives the teacher's prediction.
        """
        return self.loss(output, prediction)

    def output_of(self, prediction: Tensor) -> Tensor:
        """Returns the output whose prediction is given, the inverse of ``predict``; of an ``invertible`` head."""
        raise NotImplementedError(f"{self.name} is not invertible")
