"""A distribution over fixed values as an exfm task head.

Legend: B examples, K values.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

import exfm
from exfm.schema import Label

_SMOOTHING = 1.0  # pseudo-examples, shared by all values, as in Laplace's rule of succession


class Bins(exfm.TaskHead):
    """A softmax over fixed values ``v_1 < ... < v_K``; the prediction is its mean.

    A label ``y`` between two neighbouring values is their mixture ``h(y)`` whose mean is ``y``; below ``v_1`` and above
    ``v_K`` it counts as that value. With the outputs ``z``::

        loss = -sum_k h_k(y) log softmax(z)_k      prediction = sum_k softmax(z)_k v_k

    It assumes no distribution, so it suits labels with several peaks, such as watch times with many zeros. A classifier
    over values, whose gradient does not grow with the error, often learns better than a squared error (Imani and White
    2018; two neighbours per label as in arXiv 1911.08265).

    A teacher's prediction ``p`` says nothing of the distribution, so it is learned as ``(prediction - p)^2 / 2 u^2``,
    with ``u`` the deviation of the values (ours).

    Args:
        config: see ``Config``.
        label: the label.
    """

    name: ClassVar[str] = "bins"
    label_kind = "regression"
    values_K: Tensor

    class Config(exfm.ComponentConfig):
        """Fields of `bins`."""

        values: tuple[float, ...] = Field(
            min_length=2,
            description="v: ascending values, in the label's unit. The first and the last should enclose nearly all "
            "labels, because labels beyond count as the nearest.",
        )

        @model_validator(mode="after")
        def _ascending(self) -> Bins.Config:
            pairs = zip(self.values, self.values[1:], strict=False)
            # Negated, because NaN compares false with everything.
            if not all(low < high for low, high in pairs):
                raise ValueError(f"values: they ascend; given: {list(self.values)}")
            return self

    def __init__(self, config: Config, label: Label) -> None:
        super().__init__(config, label)
        self.num_outputs = len(config.values)
        self.register_buffer("values_K", torch.tensor(config.values))

    def start(self, label_B: Tensor, weight_B: Tensor) -> Tensor:
        """Returns the logarithms of the shares of the values among the first labels."""
        counts_K = (self._mixture(label_B) * weight_B.unsqueeze(1)).sum(dim=0) + _SMOOTHING / self.num_outputs
        return (counts_K / counts_K.sum()).log()

    def loss(self, output: Tensor, label_B: Tensor) -> Tensor:
        """Returns the cross-entropy (B,) of the softmax and the label's mixture."""
        return -(self._mixture(label_B) * output.log_softmax(dim=1)).sum(dim=1)

    def predict(self, output: Tensor) -> Tensor:
        """Returns the mean (B,) of the distribution."""
        return (output.softmax(dim=1) * self.values_K).sum(dim=1)

    def soft_loss(self, output: Tensor, prediction: Tensor) -> Tensor:
        """Returns half the squared difference (B,) of both predictions, in deviations of the values."""
        return ((self.predict(output) - prediction) / self.values_K.std(correction=0)).square() / 2

    def _mixture(self, label_B: Tensor) -> Tensor:
        """Returns the weights (B, K) of the two values around each label, whose mean is the label."""
        values_K = self.values_K.to(label_B.dtype)
        label_B = label_B.clamp(values_K[0], values_K[-1])
        # The label lies between the values at upper - 1 and upper; the first value lies between the first two.
        upper_B = torch.searchsorted(values_K, label_B.contiguous()).clamp(min=1)
        low_B, high_B = values_K[upper_B - 1], values_K[upper_B]
        share_B = ((label_B - low_B) / (high_B - low_B)).unsqueeze(1)
        mixture_BK = torch.zeros(label_B.shape[0], self.num_outputs, dtype=label_B.dtype, device=label_B.device)
        mixture_BK = mixture_BK.scatter(1, (upper_B - 1).unsqueeze(1), 1 - share_B)
        return mixture_BK.scatter(1, upper_B.unsqueeze(1), share_B)
