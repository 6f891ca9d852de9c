"""Wukong as an exfm backbone.

Legend: B examples, N tokens, D width of a token, R width of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from exfm import Backbone, BackboneInputs, ComponentConfig, JaggedSequence
from exfm_plugins.wukong.blocks import Activation, WukongLayer, mlp

_ACTIVATIONS: dict[str, Activation] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class Wukong(Backbone):
    """Stacked factorization machines (arXiv 2403.02545): interactions of orders 1 to 2^layers at linear cost in N.

    Each layer is ``X' = LN([FMB(X) || LCB(X)] + X)``; the tokens of the last one are flattened and go through an
    MLP. Scale the number of layers first, then tokens, k and MLP together (section 3.8).

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Example::

        backbone = Wukong(Wukong.Config(layers=3), BackboneInputs(tokens=("dense", "user", "item"), dim=16))
        representation_BR = backbone(torch.randn(8, 3, 16), {})
    """

    name: ClassVar[str] = "wukong"

    class Config(ComponentConfig):
        """Fields of `wukong`."""

        layers: PositiveInt = Field(2, description="Interaction layers l: interactions up to order 2^l.")
        num_fmb_tokens: PositiveInt = Field(8, description="n_F: tokens each factorization machine block makes.")
        num_lcb_tokens: PositiveInt = Field(8, description="n_L: tokens each linear compression block makes.")
        k: PositiveInt = Field(16, description="Columns of the projection Y: the rank of FM(X) = X (X^T Y).")
        fmb_hidden: tuple[PositiveInt, ...] = Field(
            (128,), description="Hidden widths of the MLP in a factorization machine block."
        )
        projection: Literal["static", "input_dependent"] = Field(
            "static",
            description="Y is a parameter, or made of each example's linearly compressed tokens by an MLP.",
        )
        projection_tokens: PositiveInt = Field(
            4, description="Tokens that X is linearly compressed to before the MLP that makes an input-dependent Y."
        )
        projection_hidden: tuple[PositiveInt, ...] = Field(
            (32,), description="Hidden widths of the MLP that makes an input-dependent Y."
        )
        head_hidden: tuple[PositiveInt, ...] = Field(
            (64,), min_length=1, description="Widths of the MLP after the layers; the last is the representation's."
        )
        activation: Literal["relu", "silu", "gelu"] = Field(
            "relu", description="Follows every hidden layer, and every layer of the MLP after the interaction layers."
        )

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        activation = _ACTIVATIONS[config.activation]
        tokens = len(inputs.tokens)
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            layer = WukongLayer(
                tokens,
                inputs.dim,
                fmb_tokens=config.num_fmb_tokens,
                lcb_tokens=config.num_lcb_tokens,
                k=config.k,
                fmb_hidden=config.fmb_hidden,
                activation=activation,
                compressed=config.projection_tokens if config.projection == "input_dependent" else 0,
                projection_hidden=config.projection_hidden,
            )
            self.layers.append(layer)
            tokens = layer.out_tokens
        self.head = mlp([tokens * inputs.dim, *config.head_hidden], activation, activate_last=True)
        self.output_dim = config.head_hidden[-1]

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        for layer in self.layers:
            tokens_BND = layer(tokens_BND)
        representation_BR: Tensor = self.head(tokens_BND.flatten(1))
        return representation_BR
