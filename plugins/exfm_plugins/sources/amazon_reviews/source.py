"""Streams Amazon reviews in time order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

import exfm
from exfm.sources import Histories, list_column
from exfm_plugins.sources.amazon_reviews.candidates import Candidates, only_reviewed, with_negatives
from exfm_plugins.sources.amazon_reviews.downloads import DOWNLOADS
from exfm_plugins.sources.amazon_reviews.files import Reviews, read_categories, read_reviews

_BATCH_ROWS = 8192
_US_PER_MS = 1000
_LIKED = 4  # stars from which a review counts as liked
_WHOLE = exfm.sources.Shard()


class AmazonReviews(exfm.DataSource):
    """Streams the released reviews of a category of Amazon's products, such as Electronics 5-core, with metadata.

    It reads JSON lines as published, plain or .gz: those of 2014 (jmcauley.ucsd.edu/data/amazon: reviewerID, asin,
    overall, unixReviewTime; metadata in Python's notation), of 2018 (nijianmo.github.io/amazon: the same names) and of
    2023 (amazon-reviews-2023.github.io: user_id, parent_asin, rating, timestamp in milliseconds).

    Labels, by ``task``. ``reviewed``, as DIN builds it (arxiv.org/abs/1706.06978): each review becomes a row with the
    label 1, and a row with the label 0 for an item that its user never reviews. Unlike DIN's, that item is drawn from
    the items with an earlier review. ``liked``: a row per review, with the label 1 for a rating of 4 or 5.

    Rows are sorted by time, which is in whole days except in 2023; ``example_id`` is the position in that order. A
    history has the user's newest reviews of strictly earlier times, so no reviews of the same day. All reviews, some 60
    bytes each, and the ids of users and items are held in memory.

    Raises:
        ValueError: a file is missing, or a line cannot be read.
    """

    name: ClassVar[str] = "amazon_reviews"
    downloads: ClassVar[tuple[exfm.sources.Download, ...]] = DOWNLOADS

    class Config(exfm.ComponentConfig):
        """Configures the location of the files, and the label."""

        path: str = Field(description="The reviews, such as reviews_Electronics_5.json.gz; any fsspec URL.")
        meta: str = Field("", description="The metadata, such as meta_Electronics.json.gz; empty for no categories.")
        task: Literal["reviewed", "liked"] = Field(
            "reviewed", description="The label: reviewed (against items drawn at random), or liked (4 or 5 stars)."
        )
        history_length: int = Field(50, gt=0, description="The user's newest earlier reviews that a row carries.")
        user_rows: int = Field(262_144, gt=0, description="Rows of the user table, into which users are hashed.")
        item_rows: int = Field(262_144, gt=0, description="Rows of the item table, into which items are hashed.")
        seed: int = Field(0, description="Which items are drawn for the label 0.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns the features user, item and category, and the history."""
        category = exfm.schema.CategoricalFeature(name="category", rows=4096)
        category_field = exfm.schema.SequenceField(
            name="category", column="history_category", rows=category.rows, table=category.name
        )
        has_metadata = bool(self.config.meta)
        categories, category_fields = ([category], [category_field]) if has_metadata else ([], [])
        rows = self.config.item_rows
        history = exfm.schema.SequenceFeature(
            name="history",
            max_length=self.config.history_length,
            times=exfm.schema.EventTimes(column="history_age"),
            fields=(
                exfm.schema.SequenceField(name="item", column="history_item", rows=rows, table="item"),
                *category_fields,
                exfm.schema.SequenceField(name="rating", column="history_rating", rows=6, ids="row"),
                exfm.schema.SequenceField(name="age", column="history_age", kind="dense", transform="log1p"),
            ),
        )
        return exfm.schema.FeatureSchema(
            group="user",
            features=(
                exfm.schema.CategoricalFeature(name="user", rows=self.config.user_rows),
                exfm.schema.CategoricalFeature(name="item", rows=rows),
                *categories,
                history,
            ),
            labels=(exfm.schema.Label(name=self.config.task),),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the first to the last review."""
        ms = self._reviews.ms_N
        return exfm.sources.TimeRange(int(ms[0]) * _US_PER_MS, int(ms[-1]) * _US_PER_MS + 1)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows with their histories; row i of the window belongs to shard ``i % count``."""
        bounds = [-(-window.start_us // _US_PER_MS), -(-window.end_us // _US_PER_MS)]
        reviews = np.searchsorted(self._reviews.ms_N, bounds)
        start, end = np.searchsorted(self._candidates.review_R, reviews)
        mine = np.arange(start + shard.index, end, shard.count)
        for first in range(0, mine.size, _BATCH_ROWS):
            rows = mine[first : first + _BATCH_ROWS]
            yield exfm.sources.Origin(f"{self.config.path} (sorted by time)", int(rows[0])).mark(self._batch(rows))

    @cached_property
    def _reviews(self) -> Reviews:
        return read_reviews(self.config.path)

    @cached_property
    def _candidates(self) -> Candidates:
        if self.config.task == "liked":
            return only_reviewed(self._reviews)
        return with_negatives(self._reviews, self.config.seed)

    @cached_property
    def _categories(self) -> pa.Array:
        return read_categories(self.config.meta, self._reviews.items)

    @cached_property
    def _histories(self) -> Histories:
        return Histories(self._reviews.user_N, self._reviews.ms_N)

    def _batch(self, row_B: NDArray[np.int64]) -> pa.RecordBatch:
        reviews, shown = self._reviews, self._candidates
        review_B, item_B = shown.review_R[row_B], shown.item_R[row_B]
        user_B, ms_B = reviews.user_N[review_B], reviews.ms_N[review_B]
        position_H, offsets = self._histories.newest(user_B, ms_B, self.config.history_length)
        past_H = self._histories.order[position_H]
        age_H = (np.repeat(ms_B, np.diff(offsets)) - reviews.ms_N[past_H]) / 1000
        label_B = shown.reviewed_R[row_B]
        if self.config.task == "liked":
            label_B = (reviews.rating_N[review_B] >= _LIKED).astype(np.int8)
        columns = {
            "example_id": row_B,
            "event_time": pa.array(ms_B * _US_PER_MS).view(pa.timestamp("us")),
            "user": reviews.users.take(pa.array(user_B)),
            "item": reviews.items.take(pa.array(item_B)),
            "history_item": list_column(offsets, reviews.items.take(pa.array(reviews.item_N[past_H]))),
            "history_rating": list_column(offsets, reviews.rating_N[past_H]),
            "history_age": list_column(offsets, age_H.astype(np.float32)),
            self.config.task: label_B,
        }
        if self.config.meta:
            past = self._categories.take(pa.array(reviews.item_N[past_H]))
            columns |= {
                "category": self._categories.take(pa.array(item_B)),
                # The elements of a list cannot be null: the empty string stands for no category.
                "history_category": list_column(offsets, past.fill_null("")),
            }
        return pa.RecordBatch.from_pydict(columns)
