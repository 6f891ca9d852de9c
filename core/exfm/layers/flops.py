"""FLOPs, counted: two for each multiplication with its addition, of matrix products and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, queries, width = query
    keys = key[-2]
    return int(2 * batch * heads * queries * keys * (width + value[-1]))


# torch's counter does not know its own CPU kernel of attention, which takes every type and mask.
_KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def flop_counter() -> FlopCounterMode:
    """torch's counter, which counts while it is entered, with the kernels it does not know by itself."""
    return FlopCounterMode(display=False, custom_mapping=_KERNELS)


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of one call, without gradients."""
    with torch.no_grad(), flop_counter() as counter:
        call()
    return int(counter.get_total_flops())
