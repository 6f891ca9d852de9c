"""Checkpoints activations: a block keeps its inputs and recomputes its activations in the backward pass."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module) -> None:
    """Wraps a block's forward pass in a checkpoint (arXiv 1604.06174); its parameters keep their names.

    Blocks are deterministic, as a forward pass that trains is also the prediction that is scored, so the state of the
    random number generators is not kept.
    """
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
