"""Applies rotary position embeddings (arXiv 2104.09864).

Legend: E rows, D = H * C width, H heads, C width of a head, P = C / 2 pairs of columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(values_ED: Tensor, positions_E: Tensor, heads: int, base: float = 10_000.0) -> Tensor:
    """Rotates pair p of each head by ``position * base^(-p / P)``, so that dot products depend only on distances.

    Args:
        values_ED: queries or keys; D / heads is even.
        positions_E: position of each row.
        heads: H.
        base: wave length of the slowest pair, in positions over 2 pi.

    Returns:
        (E, D), in the dtype of ``values_ED``.
    """
    width = values_ED.shape[1]
    pairs = width // heads // 2
    # Angles in float32 or better: bfloat16 cannot tell the positions 256 and 257 apart.
    exact = torch.float64 if values_ED.dtype == torch.float64 else torch.float32
    frequency_P = base ** (-torch.arange(pairs, device=values_ED.device, dtype=exact) / pairs)
    angle_EP = positions_E.to(exact).unsqueeze(1) * frequency_P
    cos_EP, sin_EP = angle_EP.cos(), angle_EP.sin()
    # Work on whole rows: several times faster than on the halves of each head, which are short and strided.
    cos_ED = cos_EP.repeat(1, 2 * heads)
    sin_ED = torch.cat([-sin_EP, sin_EP], dim=1).repeat(1, heads)
    partner_D = torch.arange(width, device=values_ED.device).view(heads, 2, pairs).flip(1).flatten()
    values_ED, dtype = values_ED.to(exact), values_ED.dtype
    return (values_ED * cos_ED + values_ED.index_select(1, partner_D) * sin_ED).to(dtype)
