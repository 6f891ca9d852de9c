"""Streams the impressions of KuaiRand, recommended and random, in time order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

import exfm
from exfm.sources import Histories, list_column
from exfm_plugins.sources.kuairand.downloads import DOWNLOADS
from exfm_plugins.sources.kuairand.impressions import (
    FILES,
    LABELS,
    RANDOM_FILE,
    Impressions,
    read_authors,
    read_impressions,
)

_BATCH_ROWS = 8192
_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
_CHINA_US = 8 * _HOUR_US  # the release's hours of the day are China's
_TABS = 16
_WHOLE = exfm.sources.Shard()


class KuaiRand(exfm.DataSource):
    """Streams KuaiRand-Pure (arXiv 2208.08696): Kuaishou's videos of April and May 2022, with seven kinds of feedback.

    It reads the files as released (kuairand.com): both ``log_standard`` files, with ``random`` the impressions that
    were drawn at random too, and ``video_features_basic_pure.csv`` for the authors. Rows are sorted by time, in the
    released order at equal times; ``example_id`` is the position in that order. ``is_rand`` is the domain.

    The history has the newest videos that the user clicked at strictly earlier times. The publishers warn that
    histories of this release have gaps, because it has impressions of a set of candidate videos alone. All impressions
    are held in memory, some 45 bytes each.

    Raises:
        ValueError: a file is missing, or a line cannot be read.
    """

    name: ClassVar[str] = "kuairand"
    downloads: ClassVar[tuple[exfm.sources.Download, ...]] = DOWNLOADS

    class Config(exfm.ComponentConfig):
        """Configures the location of the files, and the labels."""

        path: str = Field(description="Folder with the released files, unpacked; any fsspec URL.")
        labels: tuple[Literal["click", "like", "follow", "comment", "forward", "hate", "long_view"], ...] = Field(
            ("click", "long_view"), min_length=1, description="Which feedback is predicted: click, like, long_view ..."
        )
        random: bool = Field(False, description="Whether impressions that were drawn at random are rows too.")
        history_length: int = Field(100, gt=0, description="The newest earlier clicks that a row carries.")
        user_rows: int = Field(65_536, gt=0, description="Rows of the user table, into which users are hashed.")
        video_rows: int = Field(32_768, gt=0, description="Rows of the video table, into which videos are hashed.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns user, video, author, tab, time of day, duration and the history of clicks."""
        rows = self.config.video_rows
        history = exfm.schema.SequenceFeature(
            name="clicked",
            max_length=self.config.history_length,
            times=exfm.schema.EventTimes(column="clicked_age"),
            fields=(
                exfm.schema.SequenceField(name="video", column="clicked_video", rows=rows, table="video_id"),
                exfm.schema.SequenceField(name="age", column="clicked_age", kind="dense", transform="log1p"),
            ),
        )
        return exfm.schema.FeatureSchema(
            group="user_id",
            domain="is_rand",
            features=(
                exfm.schema.CategoricalFeature(name="user_id", rows=self.config.user_rows),
                exfm.schema.CategoricalFeature(name="video_id", rows=rows),
                exfm.schema.CategoricalFeature(name="author_id", rows=rows),
                exfm.schema.CategoricalFeature(name="tab", rows=_TABS, ids="row"),
                exfm.schema.CategoricalFeature(name="hour", rows=24, ids="row"),
                exfm.schema.CategoricalFeature(name="is_rand", rows=2, ids="row"),
                exfm.schema.DenseFeature(name="duration_s", transform="log1p"),
                history,
            ),
            labels=tuple(exfm.schema.Label(name=label) for label in self.config.labels),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the first to the last impression."""
        time = self._impressions.time_N
        return exfm.sources.TimeRange(int(time[0]), int(time[-1]) + 1)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's impressions with their histories; row i of the window belongs to shard ``i % count``."""
        start, end = np.searchsorted(self._impressions.time_N, [window.start_us, window.end_us])
        mine = np.arange(start + shard.index, end, shard.count)
        for first in range(0, mine.size, _BATCH_ROWS):
            rows = mine[first : first + _BATCH_ROWS]
            yield exfm.sources.Origin(f"{self.config.path} (sorted by time)", int(rows[0])).mark(self._batch(rows))

    @cached_property
    def _impressions(self) -> Impressions:
        return read_impressions(self.config.path, (*FILES, RANDOM_FILE) if self.config.random else FILES)

    @cached_property
    def _authors(self) -> NDArray[np.int64]:
        return read_authors(self.config.path)

    @cached_property
    def _clicks(self) -> tuple[NDArray[np.int64], Histories]:
        """Returns the clicks' rows in order of user and time, and the index that finds a row's clicks."""
        impressions = self._impressions
        rows_E = np.flatnonzero(impressions.label_N["click"] == 1)
        histories = Histories(impressions.user_N[rows_E], impressions.time_N[rows_E])
        rows_E = rows_E[histories.order]
        del histories.order  # the rows are in this order now, so the index needs no memory for it
        return rows_E, histories

    def _batch(self, row_B: NDArray[np.int64]) -> pa.RecordBatch:
        impressions = self._impressions
        time_B, video_B = impressions.time_N[row_B], impressions.video_N[row_B]
        has_author_B = (video_B >= 0) & (video_B < self._authors.size)
        author_B = np.where(has_author_B, self._authors[np.where(has_author_B, video_B, 0)], -1)
        rows_E, histories = self._clicks
        position_H, offsets = histories.newest(impressions.user_N[row_B], time_B, self.config.history_length)
        past_H = rows_E[position_H]
        age_H = (np.repeat(time_B, np.diff(offsets)) - impressions.time_N[past_H]) / 1e6
        columns: dict[str, Any] = {
            "example_id": row_B,
            "event_time": pa.array(time_B).view(pa.timestamp("us")),
            "user_id": impressions.user_N[row_B],
            "video_id": video_B,
            "author_id": pa.array(author_B, mask=author_B < 0),
            "tab": impressions.tab_N[row_B],
            "hour": ((time_B + _CHINA_US) % _DAY_US // _HOUR_US).astype(np.int8),
            "is_rand": impressions.random_N[row_B],
            "duration_s": impressions.duration_N[row_B],
            "clicked_video": list_column(offsets, impressions.video_N[past_H]),
            "clicked_age": list_column(offsets, age_H.astype(np.float32)),
            **{label: impressions.label_N[label][row_B] for label in LABELS if label in self.config.labels},
        }
        return pa.RecordBatch.from_pydict(columns)
