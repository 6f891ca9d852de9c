"""Compares predictions of a model that should be equal but for rounding."""

from __future__ import annotations

from torch import Tensor


def relative_difference(values: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, over the expected value's size where that is above 1, as no probability is."""
    return float(((values - expected).abs() / expected.abs().clamp(min=1)).max())
