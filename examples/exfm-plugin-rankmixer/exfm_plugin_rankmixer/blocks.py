"""The parts of RankMixer (arXiv 2507.15551, section 3).

Legend: B examples, T tokens, D width of a token, H heads, I and O widths of a layer's input and output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


class PerTokenLinear(nn.Module):
    """A linear layer for each token, with separate weights: ``y_t = x_t W_t + b_t``, as a batched product."""

    def __init__(self, tokens: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        bound = fan_in**-0.5
        self.weight_TIO = nn.Parameter(torch.empty(tokens, fan_in, fan_out).uniform_(-bound, bound))
        self.bias_TO = nn.Parameter(torch.empty(tokens, fan_out).uniform_(-bound, bound))

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Maps (B, T, I) to (B, T, O)."""
        # einsum would do, but it asks whether B is 1, which an exported program may not.
        y_TBO = torch.baddbmm(self.bias_TO.unsqueeze(1), x_BTI.transpose(0, 1), self.weight_TIO)
        return y_TBO.transpose(0, 1)


def mix_tokens(x_BTD: Tensor) -> Tensor:
    """Multi-head token mixing with as many heads as tokens: new token h is head h of all tokens, side by side.

    It has no parameters. Applied twice, it is the identity.
    """
    tokens, width = x_BTD.shape[1:]
    heads_BTHd = torch.unflatten(x_BTD, 2, (tokens, width // tokens))
    return torch.cat(heads_BTHd.unbind(1), dim=-1)


class Block(nn.Module):
    """``s = LN(mix(x) + x)``, then ``LN(PFFN(s) + s)`` with ``PFFN(s)_t = gelu(s_t W_t1 + b_t1) W_t2 + b_t2``.

    Args:
        tokens: T.
        width: D, a multiple of T.
        expansion: k; the hidden layer is k D wide.
    """

    def __init__(self, tokens: int, width: int, expansion: int) -> None:
        super().__init__()
        self.up = PerTokenLinear(tokens, width, expansion * width)
        self.down = PerTokenLinear(tokens, expansion * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        s_BTD: Tensor = self.norms[0](mix_tokens(x_BTD) + x_BTD)
        y_BTD: Tensor = self.norms[1](self.down(gelu(self.up(s_BTD))) + s_BTD)
        return y_BTD
