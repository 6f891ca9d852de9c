"""DeepFM as an exfm backbone.

Legend: B examples, N tokens, D width of a token, W = N D, H width of the MLP's last layer, R = D + 1 + H width of
the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, JaggedSequence
from exfm.layers import ActivationName, mlp


class DeepFM(Backbone):
    """A factorization machine and an MLP that share their embeddings (arXiv 1703.04247).

    The paper's logit is a sum, ``<w, x> + sum_{i < j} <e_i, e_j> + MLP([e_1 || e_2 || ...])``. A backbone leaves the
    logit to the heads, so its representation concatenates the terms::

        [ sum_{i < j} e_i * e_j  ||  sum_i <a_i, e_i>  ||  MLP([e_1 || e_2 || ...]) ]
          second order, D wide       first order, 1        deep, the MLP's last hidden layer

    With a linear head (``head_hidden: []``, the default) the logit is the paper's with two differences. The head weighs
    each column of the second order, where the paper adds up all D with weight 1. And the first order has a learned
    vector ``a_i`` per token over its embedding, where the paper has a table with a weight per id: that weight becomes
    a direction of the embedding. The second order is computed as ``((sum_i e_i)^2 - sum_i e_i^2) / 2``, in O(N D).

    Its FLOPs in matrix products are ``2 (N D + N D h_1 + h_1 h_2 + ...)`` per example.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Example::

        backbone = DeepFM(DeepFM.Config(hidden=(64, 32)), BackboneInputs(tokens=("dense", "user", "item"), dim=16))
        representation_BR = backbone(torch.randn(8, 3, 16), {})  # (8, 16 + 1 + 32)
    """

    name: ClassVar[str] = "deepfm"

    class Config(ComponentConfig):
        """Fields of `deepfm`."""

        hidden: tuple[PositiveInt, ...] = Field(
            (128, 64), min_length=1, description="Widths of the MLP's layers; the paper's best has three of 400."
        )
        activation: ActivationName = Field("relu", description="Follows every layer of the MLP; relu is the paper's.")

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        width = len(inputs.tokens) * inputs.dim
        self.first_order = nn.Linear(width, 1, bias=False)
        self.deep = mlp([width, *config.hidden], config.activation, activate_last=True)
        self.output_dim = inputs.dim + 1 + config.hidden[-1]

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        flat_BW = tokens_BND.flatten(1)
        # (sum of tokens)^2 - sum of tokens^2 is twice the sum over pairs, in O(N) products instead of O(N^2).
        second_BD = (tokens_BND.sum(1).square() - tokens_BND.square().sum(1)) / 2
        return torch.cat([second_BD, self.first_order(flat_BW), self.deep(flat_BW)], dim=1)
