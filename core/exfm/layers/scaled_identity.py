"""A linear map between two widths that starts by copying."""

from __future__ import annotations

import torch
from torch import nn


def scaled_identity(width: int, dim: int, scale: float) -> nn.Linear:
    """Makes a linear map (..., width) -> (..., dim) without bias that starts as the identity times ``scale``.

    Of two different widths it copies the leading columns, and fills up with zeros.
    """
    projection = nn.Linear(width, dim, bias=False)
    nn.init.eye_(projection.weight)
    with torch.no_grad():
        projection.weight.mul_(scale)
    return projection
