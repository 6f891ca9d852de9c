"""Randomness without state: a draw is a pure function of a seed, a purpose and an index.

That is what lets a window be generated without the ones before it, and a shard without the rows of the others.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from exfm.sources import splitmix64

Ints = NDArray[np.int64]
Bits = NDArray[np.uint64]
Floats = NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, purpose: str) -> np.uint64:
    """A 64-bit key: draws for different seeds or purposes have nothing to do with each other."""
    return np.uint64(int.from_bytes(blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little"))


def generator(seed: int, purpose: str) -> np.random.Generator:
    """An ordinary generator, for tables that are drawn once and kept."""
    return np.random.default_rng(int(key(seed, purpose)))


def bits(key_: np.uint64 | Bits, index: Ints) -> Bits:
    """64 random bits per index (the splitmix64 generator, at position ``index``).

    An array as key nests draws: ``bits(bits(key, user), event)`` are the bits of each user's event.
    """
    state = index.astype(np.uint64)
    state *= _GOLDEN
    state += key_
    return splitmix64(state)


def uniform(bits_: Bits) -> Floats:
    """Bits as floats in [0, 1)."""
    return np.asarray((bits_ >> np.uint64(11)) * 2.0**-53, np.float64)


def below(limit: int | Ints, bits_: Bits, low: int, width: int) -> Ints:
    """An integer in [0, limit) from the ``width`` bits that start at bit ``low``; ``limit * 2**width < 2**63``."""
    part = ((bits_ >> np.uint64(low)) & np.uint64((1 << width) - 1)).astype(np.int64)
    return (part * limit) >> width


def skewed(limit: int, bits_: Bits, skew: float) -> Ints:
    """An integer in [0, limit): even for a skew of 1; the higher the skew, the more the first ones dominate."""
    return np.minimum((limit * uniform(bits_) ** skew).astype(np.int64), limit - 1)
