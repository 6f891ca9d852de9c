"""DCN-V2 as an exfm backbone.

Legend: B examples, N tokens, D width of a token, W = N D, R width of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, JaggedSequence
from exfm.layers import ActivationName, InputNormName, input_norm, mlp
from exfm_plugins.backbones.dcn_v2.blocks import CrossLayer, ExpertGateName, LowRankCrossLayer


class DCNV2(Backbone):
    """A cross network over the flattened tokens, and an MLP (arXiv 2008.13535).

    A cross layer is ``x_{l+1} = x_0 * (W x_l + b) + x_l``, with ``x_0`` the flattened tokens: polynomials up to degree
    l + 1 after l layers. W is full, of low rank (``rank``), or a mixture of low-rank experts (``experts``). The gates
    of a layer are a linear map of its input; the paper names softmax and sigmoid and leaves the map open.

    Stacked, the MLP reads the last cross layer; parallel, it reads ``x_0`` and the representation is
    ``[x_L || MLP(x_0)]``.

    The FLOPs of a cross layer are, per example, ``2 W^2`` for a full matrix and
    ``4 K S W`` for K experts of rank S, plus ``2 K W`` for the gates if K > 1 and ``2 K S^2`` with an activation.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Example::

        inputs = BackboneInputs(tokens=("dense", "user", "item"), dim=16)
        backbone = DCNV2(DCNV2.Config(layers=2, rank=8, experts=4), inputs)
        representation_BR = backbone(torch.randn(8, 3, 16), {})  # (8, 64)
    """

    name: ClassVar[str] = "dcn_v2"

    class Config(ComponentConfig):
        """Fields of `dcn_v2`."""

        input_norm: InputNormName = Field(
            "none", description="layer_norm: x_0 is normalised (ours); crosses of tokens of any size can diverge."
        )
        layers: PositiveInt = Field(3, description="Cross layers l: crosses up to degree l + 1.")
        structure: Literal["stacked", "parallel"] = Field(
            "stacked", description="The MLP reads the last cross layer (stacked), or the tokens (parallel)."
        )
        hidden: tuple[PositiveInt, ...] = Field(
            (128, 64), description="Widths of the MLP's layers; none: the cross network alone."
        )
        rank: NonNegativeInt = Field(
            0, description="Rank of a cross layer's matrix, of each expert's where there are several; 0: full."
        )
        experts: PositiveInt = Field(1, description="Low-rank experts of a cross layer; several need a rank.")
        gate: ExpertGateName = Field("softmax", description="Of the experts: softmax over them, or a sigmoid for each.")
        low_rank_activation: ActivationName | None = Field(
            None, description="g in an expert's U g(C g(V^T x)); none: U V^T x."
        )
        activation: ActivationName = Field("relu", description="Follows every layer of the MLP; relu is the paper's.")

        @model_validator(mode="after")
        def _experts_have_a_rank(self) -> DCNV2.Config:
            if not self.rank and (self.experts > 1 or self.low_rank_activation is not None):
                raise ValueError(
                    f"experts: {self.experts} and low_rank_activation: {self.low_rank_activation} are of low-rank "
                    "matrices, but rank is 0, a full matrix; give a rank of 1 or more, or leave both out"
                )
            return self

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        width = len(inputs.tokens) * inputs.dim
        self.norm = input_norm(config.input_norm, len(inputs.tokens), inputs.dim)
        self.layers = nn.ModuleList(_cross_layer(width, config) for _ in range(config.layers))
        self.layer_dims = {f"layers.{i}": width for i in range(config.layers)}
        self.deep = mlp([width, *config.hidden], config.activation, activate_last=True) if config.hidden else None
        self._parallel = config.structure == "parallel"
        deep_width = config.hidden[-1] if config.hidden else 0
        self.output_dim = deep_width if self.deep and not self._parallel else width + deep_width

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        x0_BW: Tensor = self.norm(tokens_BND).flatten(1)
        x_BW = x0_BW
        for layer in self.layers:
            x_BW = layer(x0_BW, x_BW)
        if self.deep is None:
            return x_BW
        if self._parallel:
            return torch.cat([x_BW, self.deep(x0_BW)], dim=1)
        representation_BR: Tensor = self.deep(x_BW)
        return representation_BR


def _cross_layer(width: int, config: DCNV2.Config) -> nn.Module:
    if config.rank:
        return LowRankCrossLayer(width, config.rank, config.experts, config.gate, config.low_rank_activation)
    return CrossLayer(width)
