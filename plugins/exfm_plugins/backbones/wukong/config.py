"""The fields of Wukong."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from exfm import ComponentConfig
from exfm.layers import ActivationName, InputNormName, NormName


class WukongConfig(ComponentConfig):
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
    cross_layer_attention: bool = Field(
        False,
        description="From the second layer on, tokens attend over the input's and all earlier layers' (ours).",
    )
    heads: PositiveInt = Field(1, description="Heads of the attention across layers; they divide D.")
    input_norm: InputNormName = Field(
        "none", description="layer_norm: all tokens of an example are normalised together before anything (ours)."
    )
    head_input: Literal["last", "all"] = Field(
        "last",
        description="Input of the MLP after the layers: the last layer's tokens (the paper's), or the input's "
        "too, so that their columns are mixed and their size has an effect (ours).",
    )
    head_hidden: tuple[PositiveInt, ...] = Field(
        (64,), min_length=1, description="Widths of the MLP after the layers; the last is the representation's."
    )
    activation: ActivationName = Field(
        "relu", description="Follows every hidden layer, and every layer of the MLP after the interaction layers."
    )
    norm: NormName = Field(
        "layer_norm", description="LayerNorm (the paper's), or RMSNorm without parameters (arXiv 2605.10886)."
    )
    bias: Literal["all", "last"] = Field(
        "all",
        description="Linear layers with a bias: all, or the MLP's last (2605.10886). LayerNorm keeps its bias.",
    )
