"""Computes histories and running statistics from strictly earlier seconds.

Legend: N rows in time order, B rows of a batch, E events of their histories.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exfm_plugins.sources.movielens.tables import Ratings

Floats = NDArray[np.float64]
# Weight of the prior in means, as a number of ratings: means of few ratings are drawn towards 0.
_PRIOR = 5.0
# Sums are computed in whole multiples of this fraction of a star. A running sum of floats would be rounded by its
# earlier terms, which belong to other keys and later seconds too. 64 bits suffice for 400 million ratings.
_STEP = 2.0**-32


class EarlierEvents:
    """Indexes, for every row, the rows of the same key in strictly earlier seconds.

    Those of row i are ``order[first[i]:end[i]]``, oldest first, without the rows of the same second as i::

        second   0  0  3  3  7          (one key)
        order    0  1  2  3  4
        first    0  0  0  0  0
        end      0  0  2  2  4

    Args:
        key_N: key of each row, for example its user.
        second_N: time of each row in seconds, in ascending order.
    """

    def __init__(self, key_N: NDArray[np.int32], second_N: NDArray[np.int64]) -> None:
        # Stable, so that the rows of a key stay in the order of time; int32 halves the memory.
        self.order = np.argsort(key_N, kind="stable").astype(np.int32)
        new_key = _changes(key_N[self.order])
        self.first = self._by_row(new_key)
        self.end = self._by_row(new_key | _changes(second_N[self.order]))

    def _by_row(self, starts: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Returns, for every row, the last start at or before its position in ``order``."""
        # Positions ascend, so the running maximum is the last start.
        last = np.maximum.accumulate(np.where(starts, np.arange(starts.size, dtype=np.int32), 0))
        by_row = np.empty_like(last)
        by_row[self.order] = last
        return by_row

    def count(self) -> NDArray[np.int32]:
        """Returns the number of earlier events of each row, (N,)."""
        return self.end - self.first

    def total(self, value_N: Floats) -> Floats:
        """Returns the sum of the earlier events' values, each rounded to a multiple of 2^-32, (N,)."""
        steps = np.rint(value_N[self.order] / _STEP).astype(np.int64)
        running = np.concatenate([[0], np.cumsum(steps)])
        total: Floats = (running[self.end] - running[self.first]) * _STEP
        return total

    def mean(self, value_N: Floats) -> Floats:
        """Returns the mean of the earlier events' values, drawn towards 0 if there are few, (N,)."""
        return self.total(value_N) / (self.count() + _PRIOR)

    def newest(self, row_B: NDArray[np.int64], most: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Returns the newest events of each row, up to ``most``: concatenated rows (E,) and offsets (B + 1,)."""
        end = self.end[row_B]
        start = np.maximum(self.first[row_B], end - most)
        lengths = end - start
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        # Position of each event in its history, for all histories in a vectorised step.
        position_E = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return self.order[np.repeat(start, lengths) + position_E], offsets


def _changes(value_N: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.concatenate([[True], value_N[1:] != value_N[:-1]])


def running_statistics(
    ratings: Ratings, by_user: EarlierEvents, has_genre_GM: NDArray[np.bool_]
) -> dict[str, NDArray[np.float32]]:
    """Computes the dense features of every row, (N,) each, from strictly earlier seconds.

    Scores are in stars, relative to the mean of all earlier ratings, so that 0 stands for no earlier ratings.

    Args:
        ratings: all ratings.
        by_user: the earlier events of every row's user.
        has_genre_GM: whether a movie (by its id) has a genre.
    """
    second, stars = ratings.second_N, ratings.half_stars_N / 2.0
    by_movie = EarlierEvents(ratings.movie_N, second)
    everything = EarlierEvents(np.zeros_like(ratings.user_N), second)
    # A rating of 3.5 before the first, so that there is a mean; it is close to the mean of all releases.
    base = (everything.total(stars) + 3.5) / (everything.count() + 1)
    movie_score = by_movie.mean(stars - base)
    surprise = stars - base - movie_score
    user_score = by_user.mean(surprise)
    last = by_user.order[np.maximum(by_user.end - 1, 0)]
    opened = by_user.order[by_user.first]
    statistics: dict[str, NDArray[Any]] = {
        "user_ratings": by_user.count(),
        "movie_ratings": by_movie.count(),
        "user_score": user_score,
        "movie_score": movie_score,
        "user_genre_score": _genre_affinity(ratings, surprise - user_score, has_genre_GM),
        "user_idle": np.where(by_user.count() > 0, second - second[last], 0),
        "user_age": second - second[opened],
    }
    return {name: value.astype(np.float32) for name, value in statistics.items()}


def _genre_affinity(ratings: Ratings, surprise_N: Floats, has_genre_GM: NDArray[np.bool_]) -> Floats:
    """Returns the mean, over a movie's genres, of the user's scores of earlier movies of the genre, (N,)."""
    total, genres = np.zeros(surprise_N.size), np.zeros(surprise_N.size)
    for has_genre_M in has_genre_GM:
        rows = np.flatnonzero(has_genre_M[ratings.movie_N])
        if rows.size:
            earlier = EarlierEvents(ratings.user_N[rows], ratings.second_N[rows])
            total[rows] += earlier.mean(surprise_N[rows])
            genres[rows] += 1
    return total / np.maximum(genres, 1)
