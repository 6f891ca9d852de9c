"""Wukong as an exfm backbone.

Legend: B examples, N tokens, D width of a token, R width of the representation, W = D times the tokens of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from exfm import Backbone
from exfm.components import BackboneInputs, JaggedSequence
from exfm.layers import input_norm, mlp
from exfm_plugins.backbones.wukong.blocks import WukongLayer
from exfm_plugins.backbones.wukong.config import WukongConfig


class Wukong(Backbone):
    """Stacked factorization machines (arXiv 2403.02545): interactions of orders 1 to 2^layers at linear cost in N.

    Each layer is ``X' = Norm([FMB(X) || LCB(X)] + X)``; the tokens of the last layer are flattened and go through
    an MLP. Scale the number of layers first, then tokens, k and MLP together (section 3.8).

    With ``cross_layer_attention``, layer i from the second on continues ``X_i = Norm(X' + MHA(X', [X_0 || ... ||
    X_(i-1)]))``: each token attends over all tokens of earlier layers. Meta's GEM (engineering post of 2025-11-10)
    names such attention and does not specify it; that it reads the input tokens ``X_0`` is our choice too.

    A forward pass takes, per example and layer from n tokens to m, these FLOPs, where ``mlp(a, b, ...)`` is
    ``2 (a b + ...)``:

    - ``2 n d (k + n_L)`` for ``X^T Y`` and ``W_L X``, and ``2 n d m`` more where n is not m, for the residual;
    - ``2 n d k + mlp(n k, *fmb_hidden, n_F d)`` for FMB;
    - input-dependent: ``2 n d c + mlp(c d, *projection_hidden, n k)`` more, c being ``projection_tokens``;
    - attention over s tokens: ``4 m d^2 + 4 s d^2 + 4 m s d``;

    and ``mlp(m d, *head_hidden)`` in the end, the first of these widths being ``(m + n) d``, n of the input, where the
    head reads the input too.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Raises:
        ValueError: ``heads`` do not divide the width of the tokens that attend across layers.

    Example::

        backbone = Wukong(Wukong.Config(layers=3), BackboneInputs(tokens=("dense", "user", "item"), dim=16))
        representation_BR = backbone(torch.randn(8, 3, 16), {})  # (8, 64)
    """

    name: ClassVar[str] = "wukong"

    Config = WukongConfig

    def __init__(self, config: WukongConfig, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        self._attends = config.cross_layer_attention
        count = tokens = len(inputs.tokens)
        self.input_norm = input_norm(config.input_norm, count, inputs.dim)
        self.layers = nn.ModuleList()
        dims: dict[str, int] = {}
        for depth in range(config.layers):
            layer = WukongLayer(tokens, inputs.dim, config, attends=self._attends and depth > 0)
            self.layers.append(layer)
            tokens = layer.out_tokens
            dims[f"layers.{depth}"] = tokens * inputs.dim
        self.layer_dims = dims
        self._reads_input = config.head_input == "all"
        widths = [(tokens + count * self._reads_input) * inputs.dim, *config.head_hidden]
        hidden = mlp(widths[:-1], config.activation, activate_last=True, bias=config.bias == "all")
        self.head = nn.Sequential(*hidden, *mlp(widths[-2:], config.activation, activate_last=True))
        self.output_dim = config.head_hidden[-1]

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        tokens_BND = self.input_norm(tokens_BND)
        input_BW = tokens_BND.flatten(1)
        before: list[Tensor] = []
        for layer in self.layers:
            output_BMD = layer(tokens_BND, *before)
            if self._attends:
                before.append(tokens_BND)
            tokens_BND = output_BMD
        last_BW = tokens_BND.flatten(1)
        if self._reads_input:
            last_BW = torch.cat([input_BW, last_BW], dim=1)
        representation_BR: Tensor = self.head(last_BW)
        return representation_BR
