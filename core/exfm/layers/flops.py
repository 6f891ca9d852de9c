"""Counts the FLOPs of matrix products and attention: two for each multiplication with its addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, queries, width = query
    keys = key[-2]
    return int(2 * batch * heads * queries * keys * (width + value[-1]))


# torch's counter lacks torch's CPU kernel of attention, which accepts every dtype and mask.
_KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def flop_counter() -> FlopCounterMode:
    """Returns torch's counter, a context manager, extended by the kernels that it lacks."""
    return FlopCounterMode(display=False, custom_mapping=_KERNELS)


def count_flops(call: Callable[[], object]) -> int:
    """Counts the FLOPs of a call, without gradients."""
    with torch.no_grad(), flop_counter() as counter:
        call()
    return int(counter.get_total_flops())
