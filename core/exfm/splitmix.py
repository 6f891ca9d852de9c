"""Spreads 64-bit integers evenly over 64 bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def splitmix64(state: npt.NDArray[np.uint64] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Returns the output of the generator splitmix64 (Steele et al. 2014) for each state, modulo 2**64.

    Only the finalizer is applied: a bijection of 64 bits that maps 0 to 0. The generator adds 0x9E3779B97F4A7C15 to
    its state before each output; a caller that hashes adds a constant itself.

    Args:
        state: any shape; negative integers count from 2**64.
    """
    # Unsigned, because >> of a negative integer would shift the sign in. astype copies: the input stays as it is.
    x = state.astype(np.uint64)
    # In place: arrays are large, and the pass over memory costs more than the arithmetic.
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
