"""Normalizes the last axis, or all tokens of an example together.

Legend: B examples, N tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

NormName = Literal["layer_norm", "rms_norm"]
InputNormName = Literal["none", "layer_norm"]


class RMSNorm(nn.Module):
    """Computes ``x / sqrt(mean(x^2) + eps)`` over the last axis, without parameters (as in arXiv 2605.10886)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, values: Tensor) -> Tensor:
        """Maps (..., width) to (..., width)."""
        return nn.functional.rms_norm(values, (self.width,), eps=self.eps)


class LayerNorm(nn.LayerNorm):
    """Normalizes the last axis with scale and shift; bfloat16 in float32 within.

    In bfloat16, torch's kernel for CPUs adds up the gradients of scale and shift in bfloat16, which loses most of the
    sum over many rows: nine tenths over 131,072 rows of 16 numbers.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Maps (..., width) to (..., width)."""
        if values.dtype != torch.bfloat16:
            return super().forward(values)
        return super().forward(values.float()).bfloat16()


def norm(name: NormName, width: int) -> nn.Module:
    """Creates a norm over the last axis: LayerNorm with scale and shift, or RMSNorm without parameters."""
    return LayerNorm(width) if name == "layer_norm" else RMSNorm(width)


class TokensNorm(LayerNorm):
    """Normalizes all tokens of an example together, which keeps the ratios of their norms.

    Args:
        tokens: N.
        dim: D.
    """

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__(tokens * dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps (B, N, D) to (B, N, D)."""
        return super().forward(tokens_BND.flatten(1)).view_as(tokens_BND)


def input_norm(name: InputNormName, tokens: int, dim: int) -> nn.Module:
    """Creates a norm for a backbone's input tokens (B, N, D), or the identity."""
    return TokensNorm(tokens, dim) if name == "layer_norm" else nn.Identity()
