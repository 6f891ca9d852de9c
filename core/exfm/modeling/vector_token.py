"""Maps vectors that were computed elsewhere, such as embeddings of texts and images, to tokens.

Legend: B examples, W width of a vector, D width of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

_LARGEST = 1e15  # its square, summed over a wide vector, is far below 3e38


class VectorToken(nn.Module):
    """Projects each example's vector to a token: ``LayerNorm(x) W + b``, the norm without weights.

    Encoders write vectors of any scale, and a model that trains on a stream cannot know it before it starts: hence the
    norm. It forgets the length of a vector; a length that matters is a dense feature besides. A missing vector, whose
    numbers are NaN, has a learned token.

    Args:
        width: W.
        dim: D.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, dim)
        self.missing_D = nn.Parameter(torch.zeros(dim))

    def forward(self, vector_BW: Tensor) -> Tensor:
        """Maps (B, W) to (B, D)."""
        # All numbers of a missing vector are NaN, and none of a vector that is there.
        is_missing_B1 = vector_BW[:, :1].isnan()
        # Replaced before the norm, because NaN would reach the weights' gradient through the unused branch.
        # Within bounds whose squares are finite in single precision, because an outlier would make all weights NaN.
        filled_BW = torch.where(is_missing_B1, 0.0, vector_BW).clamp(-_LARGEST, _LARGEST)
        token_BD: Tensor = self.projection(layer_norm(filled_BW, filled_BW.shape[1:]))
        return torch.where(is_missing_B1, self.missing_D, token_BD)
