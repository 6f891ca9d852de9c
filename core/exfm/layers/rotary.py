"""Rotary position embedding (arXiv 2104.09864).

Legend: E rows, D = H * C width, H heads, C width of a head, P = C / 2 pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(values_ED: Tensor, positions_E: Tensor, heads: int, base: float = 10_000.0) -> Tensor:
    """Turns pair p of each head by ``position * base^(-p / P)``: dot products then depend on distances alone.

    Args:
        values_ED: queries or keys; D / heads is even.
        positions_E: position of each row.
        heads: H.
        base: wave length of the slowest pair, in positions over 2 pi.

    Returns:
        (E, D), in the type of ``values_ED``.
    """
    rows, width = values_ED.shape
    pairs = width // heads // 2
    exact = torch.float64 if values_ED.dtype == torch.float64 else torch.float32
    frequency_P = base ** (-torch.arange(pairs, device=values_ED.device, dtype=exact) / pairs)
    angle_E1P = (positions_E.to(exact).unsqueeze(1) * frequency_P).unsqueeze(1)
    cos_E1P, sin_E1P = angle_E1P.cos(), angle_E1P.sin()
    first_EHP, second_EHP = values_ED.to(exact).view(rows, heads, 2, pairs).unbind(2)
    turned = (first_EHP * cos_E1P - second_EHP * sin_E1P, first_EHP * sin_E1P + second_EHP * cos_E1P)
    return torch.stack(turned, dim=2).view(rows, width).to(values_ED.dtype)
