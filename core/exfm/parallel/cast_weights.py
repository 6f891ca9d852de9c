"""Casts the weights of a forward pass to bfloat16 once, before threads share it.

All threads share autocast's cache of cast weights, and each thread empties it when it leaves autocast. Whether two uses
of a weight share a cast, and so whether their gradients are added in bfloat16 or in float32, would depend on which
thread is ahead. Here the cache is filled before the threads begin and emptied after they have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def cast_weights(weights: Sequence[Tensor]) -> Iterator[None]:
    """Keeps bfloat16 casts of weights in autocast's cache, for the threads that enter ``kept_casts``."""
    with kept_casts():
        # Inside ``kept_casts``, or the end of this autocast would empty the cache.
        # With gradients, because a cast that was cached without would cut the weight off from the loss.
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
            for weight in weights:
                _cast(weight)
        try:
            yield
        finally:
            # The optimizer changes the weights afterwards, and a cast that stays would be stale.
            torch.clear_autocast_cache()


@contextmanager
def kept_casts() -> Iterator[None]:
    """Keeps autocast's cache when this thread leaves autocast, as if inside another autocast."""
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()


def _cast(weight: Tensor) -> None:
    """Adds a weight to the cache through a product without examples; the cache has no other interface."""
    if weight.dim():  # a product takes no scalars, so autocast does not cast them either
        torch.matmul(weight.new_empty(0, weight.shape[max(weight.dim() - 2, 0)]), weight)
