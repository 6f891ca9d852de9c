"""DLRM as an exfm backbone.

Legend: B examples, N tokens, D width of a token, P = N (N - 1) / 2 pairs, C tokens that join the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, JaggedSequence
from exfm.layers import ActivationName, mlp


class DLRM(Backbone):
    """Dot products of all pairs of tokens, joined by the tokens themselves, through an MLP (arXiv 1906.00091).

    ``representation = MLP([x_i . x_j for i < j] || [x_c for c in concat])``. A token is not paired with itself. The
    paper's bottom MLP makes the token ``dense`` of the dense features; it does not belong to a backbone.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Raises:
        ValueError: ``concat: dense`` without a token ``dense``, where a single token leaves no pairs either.

    Example::

        backbone = DLRM(DLRM.Config(hidden=(64, 32)), BackboneInputs(tokens=("dense", "user", "item"), dim=16))
        representation_BR = backbone(torch.randn(8, 3, 16), {})  # (8, 32)
    """

    name: ClassVar[str] = "dlrm"

    class Config(ComponentConfig):
        """Fields of `dlrm`."""

        hidden: tuple[PositiveInt, ...] = Field(
            (128, 64), min_length=1, description="Widths of the top MLP's layers; the last is the representation's."
        )
        concat: Literal["all", "dense"] = Field(
            "all",
            description="Tokens that join the dot products: all (ours), or the token `dense` alone (the paper's).",
        )
        activation: ActivationName = Field(
            "relu", description="Follows every layer of the top MLP; relu is the paper's."
        )

    joined: Tensor
    pairs: Tensor

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        count = len(inputs.tokens)
        self._joins_all = config.concat == "all"
        joined = [index for index, token in enumerate(inputs.tokens) if self._joins_all or token == "dense"]
        rows, columns = torch.triu_indices(count, count, offset=1)
        # Indices into the flattened (N, N) matrix, as index_select is faster than advanced indexing on two axes.
        self.register_buffer("pairs", rows * count + columns, persistent=False)
        self.register_buffer("joined", torch.tensor(joined, dtype=torch.long), persistent=False)
        width = len(rows) + len(joined) * inputs.dim
        if not width:
            raise ValueError(
                f"dlrm: concat='dense' and the single token {inputs.tokens} leave nothing to the top MLP, "
                "as there is neither a pair nor a token 'dense'; use concat='all'"
            )
        self.top = mlp([width, *config.hidden], config.activation, activate_last=True)
        self.output_dim = config.hidden[-1]

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        dots_BP = torch.bmm(tokens_BND, tokens_BND.mT).flatten(1).index_select(1, self.pairs)
        joined_BCD = tokens_BND
        if not self._joins_all:
            joined_BCD = tokens_BND.index_select(1, self.joined)
        representation_BR: Tensor = self.top(torch.cat([dots_BP, joined_BCD.flatten(1)], dim=1))
        return representation_BR
