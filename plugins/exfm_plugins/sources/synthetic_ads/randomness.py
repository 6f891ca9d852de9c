"""Draws random numbers without state, as a pure function of a seed, a purpose and an index.

So a window can be generated without the preceding windows, and a shard without the rows of the others.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from exfm.sources import splitmix64

Ints = NDArray[np.int64]
Bits = NDArray[np.uint64]
Floats = NDArray[np.float64]

# The increment of splitmix64: 2^64 divided by the golden ratio, made odd.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, purpose: str) -> np.uint64:
    """Returns a 64-bit key; draws with keys of different seeds or purposes are independent."""
    return np.uint64(int.from_bytes(blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little"))


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Creates a stateful generator, for tables that are drawn once and stored."""
    return np.random.default_rng(int(key(seed, purpose)))


def bits(key_: np.uint64 | Bits, index: Ints) -> Bits:
    """Draws 64 random bits per index: the output of the splitmix64 generator at position ``index``.

    An array as key nests draws: ``bits(bits(key, user), event)`` are the bits of each user's event.
    """
    # In place, because a batch has many events; unsigned arithmetic wraps modulo 2^64 as the generator does.
    state = index.astype(np.uint64)
    state *= _GOLDEN
    state += key_
    return splitmix64(state)


def uniform(bits_: Bits) -> Floats:
    """Converts bits to floats in [0, 1)."""
    # The upper 53 bits, as many as the significand of a float64 has.
    return np.asarray((bits_ >> np.uint64(11)) * 2.0**-53, np.float64)


def below(limit: int | Ints, bits_: Bits, low: int, width: int) -> Ints:
    """Draws an integer in [0, limit) from ``width`` bits starting at bit ``low``, for ``limit * 2**width < 2**63``."""
    selected = ((bits_ >> np.uint64(low)) & np.uint64((1 << width) - 1)).astype(np.int64)
    # Multiply and shift instead of a remainder, which needs a slow division.
    return (selected * limit) >> width


def skewed(limit: int, bits_: Bits, skew: float) -> Ints:
    """Draws an integer in [0, limit), uniform for a skew of 1; with a higher skew, low integers are more frequent."""
    # The minimum, because the product may round up to the limit.
    return np.minimum((limit * uniform(bits_) ** skew).astype(np.int64), limit - 1)
