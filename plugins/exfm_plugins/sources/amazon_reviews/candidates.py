"""Items that a user might have reviewed and did not.

Legend: N reviews in time order, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exfm_plugins.sources.amazon_reviews.files import Reviews

_DRAWS = 100


@dataclass(frozen=True)
class Candidates:
    """What rows are about: the review that each stands beside, the item it shows, and whether that was reviewed."""

    review_R: NDArray[np.int32]
    item_R: NDArray[np.int32]
    reviewed_R: NDArray[np.int8]


def only_reviewed(reviews: Reviews) -> Candidates:
    """One row per review."""
    size = reviews.item_N.size
    return Candidates(np.arange(size, dtype=np.int32), reviews.item_N, np.ones(size, np.int8))


def with_negatives(reviews: Reviews, seed: int) -> Candidates:
    """Two rows per review: its item, then one drawn evenly from those that its user never reviews.

    Only items that somebody has reviewed by then are drawn: an item that nobody knows yet would give itself away. A
    user who has reviewed about all there are gets none.
    """
    user_N, item_N, ms_N = reviews.user_N, reviews.item_N, reviews.ms_N
    items = len(reviews.items)
    first_ms = ms_N[np.unique(item_N, return_index=True)[1]]
    # Items are numbered in the order of their first review.
    known_N = np.searchsorted(first_ms, ms_N, side="right")
    seen = np.unique(user_N.astype(np.int64) * items + item_N)
    random = np.random.default_rng(seed)
    drawn_N = np.full(item_N.size, -1, np.int32)
    for _ in range(_DRAWS):
        open_N = np.flatnonzero(drawn_N < 0)
        if not open_N.size:
            break
        draw = (random.random(open_N.size) * known_N[open_N]).astype(np.int32)
        pair = user_N[open_N].astype(np.int64) * items + draw
        place = np.minimum(np.searchsorted(seen, pair), seen.size - 1)
        drawn_N[open_N] = np.where(seen[place] == pair, -1, draw)
    kept = np.flatnonzero(drawn_N >= 0)
    review_R = np.concatenate([np.arange(item_N.size), kept])
    item_R = np.concatenate([item_N, drawn_N[kept]])
    order = np.argsort(review_R, kind="stable")
    reviewed_R = np.repeat(np.array([1, 0], np.int8), [item_N.size, kept.size])
    return Candidates(review_R[order].astype(np.int32), item_R[order].astype(np.int32), reviewed_R[order])
