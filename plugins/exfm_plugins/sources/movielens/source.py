"""Streams the ratings of MovieLens in time order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

import exfm
from exfm_plugins.sources.movielens.causal import EarlierEvents, running_statistics
from exfm_plugins.sources.movielens.downloads import DOWNLOADS
from exfm_plugins.sources.movielens.files import ReleaseFiles, find_release
from exfm_plugins.sources.movielens.tables import (
    AGE_BRACKETS,
    GENRES,
    OCCUPATIONS,
    YEARS,
    ZIP_AREAS,
    Attributes,
    Ratings,
    read_movies,
    read_ratings,
    read_users,
)

_WHOLE = exfm.sources.Shard()
_BATCH_ROWS = 8192
_MICROSECONDS = 1_000_000
_LOG_SCALED = ("user_ratings", "movie_ratings", "user_idle", "user_age")
_SCORES = ("user_score", "movie_score", "user_genre_score")


class MovieLens(exfm.DataSource):
    """Streams the original released files of MovieLens 1M, 100k or latest, from a folder or the released zip.

    Labels: ``like`` (rating >= 4) and ``love`` (rating = 5). Rows are sorted by (time, user, movie); ``example_id`` is
    the position in that order. A row's history and running statistics come from strictly earlier seconds. Ids are table
    rows, without collisions; only the users of the latest release, which ships no list of them, are hashed (see
    ``user_rows``). All ratings are held in memory, some 60 bytes each; histories are built per window.

    Raises:
        ValueError: the path holds none of the releases, a file is missing or damaged, or a rating names an unknown
            user or movie.
    """

    name: ClassVar[str] = "movielens"
    downloads: ClassVar[tuple[exfm.sources.Download, ...]] = DOWNLOADS

    class Config(exfm.ComponentConfig):
        """Configures the location of the release, and the labels."""

        path: str = Field(description="Folder with the released files, or the released zip; any fsspec URL.")
        task: Literal["like", "love", "both"] = Field(
            "both", description="The labels: like (rating of 4 or more), love (rating of 5), or both."
        )
        history_length: int = Field(50, gt=0, description="The user's newest earlier ratings that a row carries.")
        user_rows: int = Field(
            262_144,
            gt=0,
            description="Rows of the user table for the latest release, whose users are hashed: some times as many as "
            "users keep collisions rare.",
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns all features; those of users are missing for a release without user attributes."""
        movie_rows = self._movies.exists_I.size
        sequence = exfm.schema.SequenceFeature(
            name="history",
            max_length=self.config.history_length,
            times=exfm.schema.EventTimes(column="history_age"),
            fields=(
                exfm.schema.SequenceField(
                    name="movie", column="history_movie", rows=movie_rows, table="movie_id", ids="row"
                ),
                exfm.schema.SequenceField(name="rating", column="history_rating", rows=11, ids="row"),
                exfm.schema.SequenceField(
                    name="genre", column="history_genre", rows=len(GENRES), table="genres", ids="row"
                ),
                exfm.schema.SequenceField(name="age", column="history_age", kind="dense", transform="log1p"),
            ),
        )
        return exfm.schema.FeatureSchema(
            group="user_id",
            features=(
                *self._user_features(),
                _rows("movie_id", movie_rows),
                _rows("movie_year", YEARS),
                exfm.schema.MultiValuedFeature(name="genres", rows=len(GENRES), ids="row"),
                _rows("hour", 24),
                _rows("weekday", 7),
                *(exfm.schema.DenseFeature(name=name, transform="log1p") for name in _LOG_SCALED),
                *(exfm.schema.DenseFeature(name=name) for name in _SCORES),
                sequence,
            ),
            labels=tuple(exfm.schema.Label(name=task) for task in self._tasks),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the first to the last rating."""
        second = self._ratings.second_N
        return exfm.sources.TimeRange(int(second[0]) * _MICROSECONDS, int(second[-1]) * _MICROSECONDS + 1)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's ratings with their histories; row i of the window belongs to shard ``i % count``."""
        bounds = [-(-window.start_us // _MICROSECONDS), -(-window.end_us // _MICROSECONDS)]
        start, end = np.searchsorted(self._ratings.second_N, bounds)
        mine = np.arange(start + shard.index, end, shard.count)
        name = f"{self._files.label(self._files.release.ratings)} (sorted by time)"
        for first in range(0, mine.size, _BATCH_ROWS):
            rows = mine[first : first + _BATCH_ROWS]
            yield exfm.sources.Origin(name, int(rows[0])).mark(self._batch(rows))

    @property
    def _tasks(self) -> tuple[str, ...]:
        return ("like", "love") if self.config.task == "both" else (self.config.task,)

    def _user_features(self) -> tuple[exfm.schema.CategoricalFeature, ...]:
        if self._users is None:
            return (exfm.schema.CategoricalFeature(name="user_id", rows=self.config.user_rows),)
        return (
            _rows("user_id", self._users.exists_I.size),
            _rows("gender", 2),
            _rows("age", len(AGE_BRACKETS)),
            _rows("occupation", len(OCCUPATIONS)),
            _rows("zip_area", ZIP_AREAS),
        )

    @cached_property
    def _files(self) -> ReleaseFiles:
        return find_release(self.config.path)

    @cached_property
    def _movies(self) -> Attributes:
        return read_movies(self._files)

    @cached_property
    def _users(self) -> Attributes | None:
        return read_users(self._files) if self._files.release.users else None

    @cached_property
    def _ratings(self) -> Ratings:
        ratings = read_ratings(self._files)
        release = self._files.release
        self._check_ids(ratings.movie_N, self._movies, release.movies)
        if self._users is not None:
            self._check_ids(ratings.user_N, self._users, release.users)
        return ratings

    def _check_ids(self, ids_N: NDArray[np.int32], attributes: Attributes, name: str) -> None:
        missing = attributes.missing_ids(ids_N)
        if missing.size:
            label = self._files.label(self._files.release.ratings)
            raise ValueError(f"movielens: {label} names {missing[0]}, which is not in {name}")

    @cached_property
    def _by_user(self) -> EarlierEvents:
        return EarlierEvents(self._ratings.user_N, self._ratings.second_N)

    @cached_property
    def _statistics(self) -> dict[str, NDArray[np.float32]]:
        genres = self._movies.table["genres"]
        has_genre_GM = np.zeros((len(GENRES), len(genres)), bool)
        has_genre_GM[genres.flatten(), np.asarray(genres.value_parent_indices())] = True
        return running_statistics(self._ratings, self._by_user, has_genre_GM)

    def _batch(self, row_B: NDArray[np.int64]) -> pa.RecordBatch:
        """Builds all columns of some rows."""
        ratings = self._ratings
        user, movie, second = ratings.user_N[row_B], ratings.movie_N[row_B], ratings.second_N[row_B]
        half_stars = ratings.half_stars_N[row_B]
        event, offsets = self._by_user.newest(row_B, self.config.history_length)
        movie_E = ratings.movie_N[event]
        age_E = np.repeat(second, np.diff(offsets)) - ratings.second_N[event]
        columns = {
            "example_id": row_B,
            "event_time": pa.array(second * _MICROSECONDS).view(pa.timestamp("us")),
            "user_id": user,
            "movie_id": movie,
            "hour": (second // 3600 % 24).astype(np.int8),
            # 1 January 1970 was a Thursday; 0 is Monday.
            "weekday": ((second // 86400 + 3) % 7).astype(np.int8),
            "history_movie": _lists(offsets, movie_E),
            "history_rating": _lists(offsets, ratings.half_stars_N[event]),
            "history_genre": _lists(offsets, self._movies.table["first_genre"].take(pa.array(movie_E))),
            "history_age": _lists(offsets, age_E.astype(np.float32)),
            **{name: values[row_B] for name, values in self._statistics.items()},
            **{task: (half_stars >= {"like": 8, "love": 10}[task]).astype(np.int8) for task in self._tasks},
        }
        columns |= self._movies.select(movie)
        if self._users is not None:
            columns |= self._users.select(user)
        return pa.RecordBatch.from_pydict(columns)


def _rows(name: str, rows: int) -> exfm.schema.CategoricalFeature:
    return exfm.schema.CategoricalFeature(name=name, rows=rows, ids="row")


def _lists(offsets: NDArray[np.int32], values: NDArray[np.generic] | pa.Array) -> pa.ListArray:
    if not isinstance(values, pa.Array):
        values = pa.array(values)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
