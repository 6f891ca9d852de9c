"""Creates linear maps that are initialized with a scaled identity."""

from __future__ import annotations

import torch
from torch import nn


def scaled_identity(width: int, dim: int, scale: float) -> nn.Linear:
    """Creates a linear map (..., width) -> (..., dim) without bias, initialized with the identity times ``scale``.

    If the widths differ, it initially copies the leading columns, and pads with zeros.
    """
    projection = nn.Linear(width, dim, bias=False)
    nn.init.eye_(projection.weight)
    with torch.no_grad():
        projection.weight.mul_(scale)
    return projection
