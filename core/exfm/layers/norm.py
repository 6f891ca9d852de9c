"""Normalisation of the last axis."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

NormName = Literal["layer_norm", "rms_norm"]


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps)`` over the last axis, without parameters (as in arXiv 2605.10886)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, values: Tensor) -> Tensor:
        """Maps (..., width) to (..., width)."""
        return nn.functional.rms_norm(values, (self.width,), eps=self.eps)


def norm(name: NormName, width: int) -> nn.Module:
    """A new norm over the last axis: LayerNorm with scale and shift, or RMSNorm without parameters."""
    return nn.LayerNorm(width) if name == "layer_norm" else RMSNorm(width)
