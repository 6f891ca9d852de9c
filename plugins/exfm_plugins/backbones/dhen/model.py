"""DHEN as an exfm backbone.

Legend: B examples, N tokens in, D width of a token, M tokens out, R width of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, JaggedSequence
from exfm.layers import ActivationName, NormName, mlp, norm
from exfm_plugins.backbones.dhen.interactions import Cross, Dot, SelfAttention, TokenMap

InteractionName = Literal["dot", "cross", "linear", "attention"]


class DHEN(Backbone):
    """A deep hierarchical ensemble (arXiv 2203.11014): interaction modules side by side, stacked in layers.

    Each layer is ``X' = Norm(Ensemble_i(Interaction_i(X)) + ShortCut(X))``: modules of different kinds catch
    interactions that the others miss, and a layer interacts the outputs of the layer before. The shortcut is X itself,
    or ``W X`` where the ensemble has another number of tokens. The tokens of the last layer are flattened and go
    through an MLP.

    The paper ensembles by concatenation, sum or weighted sum, and tries five modules, of which the convolution is
    left out here, as the order of tokens means nothing. The paper leaves open how a module maps products to tokens; see
    the modules' classes for our choice. All sizes are fields; each module of a layer outputs ``num_tokens`` tokens.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Raises:
        ValueError: ``dot`` gets a single token, or ``heads`` do not divide the width that ``attention`` gets.

    Example::

        config = DHEN.Config(modules=("dot", "attention"), layers=3)
        backbone = DHEN(config, BackboneInputs(tokens=("dense", "user", "item"), dim=16))
        representation_BR = backbone(torch.randn(8, 3, 16), {})  # (8, 64)
    """

    name: ClassVar[str] = "dhen"

    class Config(ComponentConfig):
        """Fields of `dhen`."""

        layers: PositiveInt = Field(2, description="Layers of the hierarchy.")
        modules: tuple[InteractionName, ...] = Field(
            ("dot", "cross", "linear"),
            min_length=1,
            description="Interaction modules of each layer; a repeated module has separate parameters.",
        )
        ensemble: Literal["concat", "sum", "weighted_sum"] = Field(
            "concat", description="How the modules' tokens are joined; learned weights start as an average."
        )
        num_tokens: PositiveInt = Field(8, description="Tokens that each module makes.")
        dot_hidden: tuple[PositiveInt, ...] = Field(
            (128,), description="Hidden widths of the MLP that makes tokens of dot products."
        )
        cross_rank: NonNegativeInt = Field(
            64,
            description="Rank of the cross module's matrix of N D rows; 0: a full matrix, which grows with N^2.",
        )
        heads: PositiveInt = Field(2, description="Heads of the attention module; they divide D.")
        attention_hidden: PositiveInt = Field(64, description="Hidden width of the MLP in the attention module.")
        head_hidden: tuple[PositiveInt, ...] = Field(
            (64,), min_length=1, description="Widths of the MLP after the layers; the last is the representation's."
        )
        activation: ActivationName = Field(
            "relu", description="Follows every hidden layer, and every layer of the MLP after the last layer."
        )
        norm: NormName = Field("layer_norm", description="LayerNorm, or RMSNorm without parameters.")

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        tokens = len(inputs.tokens)
        self.layers = nn.ModuleList()
        dims: dict[str, int] = {}
        for depth in range(config.layers):
            layer = DHENLayer(tokens, inputs.dim, config)
            self.layers.append(layer)
            tokens = layer.out_tokens
            dims[f"layers.{depth}"] = tokens * inputs.dim
        self.layer_dims = dims
        self.head = mlp([tokens * inputs.dim, *config.head_hidden], config.activation, activate_last=True)
        self.output_dim = config.head_hidden[-1]

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        for layer in self.layers:
            tokens_BND = layer(tokens_BND)
        representation_BR: Tensor = self.head(tokens_BND.flatten(1))
        return representation_BR


class DHENLayer(nn.Module):
    """``X' = Norm(Ensemble_i(Interaction_i(X)) + ShortCut(X))``, from N tokens to M.

    Args:
        tokens: N.
        dim: D.
        config: the backbone's.

    Raises:
        ValueError: a module does not take tokens of this number or width.
    """

    def __init__(self, tokens: int, dim: int, config: DHEN.Config) -> None:
        super().__init__()
        count = len(config.modules)
        self.out_tokens = config.num_tokens * (count if config.ensemble == "concat" else 1)
        self.interactions = nn.ModuleList(_interaction(name, tokens, dim, config) for name in config.modules)
        self.concat = config.ensemble == "concat"
        self.weights = nn.Parameter(torch.full((count,), 1 / count)) if config.ensemble == "weighted_sum" else None
        self.shortcut = TokenMap(tokens, self.out_tokens) if tokens != self.out_tokens else nn.Identity()
        self.norm = norm(config.norm, dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, M, D)."""
        ensemble_BMD = self._ensemble([interaction(tokens_BND) for interaction in self.interactions])
        output_BMD: Tensor = self.norm(ensemble_BMD + self.shortcut(tokens_BND))
        return output_BMD

    def _ensemble(self, outputs: list[Tensor]) -> Tensor:
        if self.concat:
            return torch.cat(outputs, dim=1)
        if self.weights is not None:
            outputs = [weight * output for weight, output in zip(self.weights, outputs, strict=True)]
        return torch.stack(outputs).sum(0)


def _interaction(name: InteractionName, tokens: int, dim: int, config: DHEN.Config) -> nn.Module:
    shape = (tokens, dim, config.num_tokens)
    if name == "dot":
        return Dot(*shape, config.dot_hidden, config.activation)
    if name == "cross":
        return Cross(*shape, config.cross_rank)
    if name == "attention":
        return SelfAttention(*shape, config.heads, config.attention_hidden, config.activation, config.norm)
    return TokenMap(tokens, config.num_tokens)
