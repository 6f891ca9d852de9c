"""Streams the previews of KuaiVideo, which were clicked or passed over, in time order."""

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
from exfm_plugins.sources.kuaivideo.downloads import DOWNLOADS
from exfm_plugins.sources.kuaivideo.interactions import Interactions, Unit, read_interactions

_BATCH_ROWS = 8192
_WHOLE = exfm.sources.Shard()


class KuaiVideo(exfm.DataSource):
    """Streams Kuaishou's micro-videos as released with BARS (KuaiVideo_x1): 13.7 million previews by 10,000 users.

    It reads ``train.csv`` and ``test.csv`` as published (huggingface.co/datasets/reczoo/KuaiVideo_x1), both with the
    columns ``timestamp, user_id, item_id, is_click, is_like, is_follow, pos_items, neg_items``. The files are merged
    into a stream that is sorted by ``timestamp``, and ``example_id`` is the position in it.

    The release's clock counts from an unknown moment: its order is right, its dates are not. Histories are built from
    strictly earlier interactions: the newest videos that the user clicked, and the newest that the user passed over.
    The histories of the release (``pos_items``, ``neg_items``) are not used, because they are a user's first 100 videos
    and not the newest; neither are the videos' visual embeddings. All interactions are held in memory, some 45 bytes
    each (0.6 GB).

    Raises:
        ValueError: a file is missing, or a line cannot be read.
    """

    name: ClassVar[str] = "kuaivideo"
    downloads: ClassVar[tuple[exfm.sources.Download, ...]] = DOWNLOADS

    class Config(exfm.ComponentConfig):
        """Configures the location of the files, and the labels."""

        path: str = Field(description="Folder with train.csv and test.csv, unpacked; any fsspec URL.")
        labels: tuple[Literal["click", "like", "follow"], ...] = Field(
            ("click",), min_length=1, description="What is predicted: click, like, follow."
        )
        time_unit: Unit = Field("ms", description="What timestamp is taken to count.")
        history_length: int = Field(100, gt=0, description="The newest earlier videos of each history.")
        user_rows: int = Field(32_768, gt=0, description="Rows of the user table, into which users are hashed.")
        item_rows: int = Field(262_144, gt=0, description="Rows of the item table, into which videos are hashed.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns user, video, and the histories of clicked and of passed videos."""
        rows = self.config.item_rows
        histories = []
        for name in ("clicked", "passed"):
            fields = (
                exfm.schema.SequenceField(name="item", column=f"{name}_item", rows=rows, table="item_id"),
                exfm.schema.SequenceField(name="age", column=f"{name}_age", kind="dense", transform="log1p"),
            )
            history = exfm.schema.SequenceFeature(
                name=name,
                max_length=self.config.history_length,
                times=exfm.schema.EventTimes(column=f"{name}_age"),
                fields=fields,
            )
            histories.append(history)
        return exfm.schema.FeatureSchema(
            group="user_id",
            features=(
                exfm.schema.CategoricalFeature(name="user_id", rows=self.config.user_rows),
                exfm.schema.CategoricalFeature(name="item_id", rows=rows),
                *histories,
            ),
            labels=tuple(exfm.schema.Label(name=label) for label in self.config.labels),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the first to the last interaction."""
        time = self._interactions.time_N
        return exfm.sources.TimeRange(int(time[0]), int(time[-1]) + 1)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's interactions with their histories; row i of the window belongs to shard ``i % count``."""
        start, end = np.searchsorted(self._interactions.time_N, [window.start_us, window.end_us])
        mine = np.arange(start + shard.index, end, shard.count)
        for first in range(0, mine.size, _BATCH_ROWS):
            rows = mine[first : first + _BATCH_ROWS]
            yield exfm.sources.Origin(f"{self.config.path} (sorted by time)", int(rows[0])).mark(self._batch(rows))

    @cached_property
    def _interactions(self) -> Interactions:
        return read_interactions(self.config.path, self.config.time_unit)

    @cached_property
    def _past(self) -> dict[str, tuple[NDArray[np.int64], Histories]]:
        """Returns, by history, its events' rows in order of user and time, and the index that finds a row's events."""
        interactions = self._interactions
        past: dict[str, tuple[NDArray[np.int64], Histories]] = {}
        for name, click in (("clicked", 1), ("passed", 0)):
            rows_E = np.flatnonzero(interactions.label_N["click"] == click)
            histories = Histories(interactions.user_N[rows_E], interactions.time_N[rows_E])
            past[name] = (rows_E[histories.order], histories)
            del histories.order  # the rows are in this order now, so the index needs no memory for it
        return past

    def _batch(self, row_B: NDArray[np.int64]) -> pa.RecordBatch:
        interactions = self._interactions
        user_B, time_B = interactions.user_N[row_B], interactions.time_N[row_B]
        columns: dict[str, Any] = {
            "example_id": row_B,
            "event_time": pa.array(time_B).view(pa.timestamp("us")),
            "user_id": user_B,
            "item_id": interactions.item_N[row_B],
            **{label: interactions.label_N[label][row_B] for label in self.config.labels},
        }
        for name, (rows_E, histories) in self._past.items():
            position_H, offsets = histories.newest(user_B, time_B, self.config.history_length)
            past_H = rows_E[position_H]
            age_H = (np.repeat(time_B, np.diff(offsets)) - interactions.time_N[past_H]) / 1e6
            columns[f"{name}_item"] = list_column(offsets, interactions.item_N[past_H])
            columns[f"{name}_age"] = list_column(offsets, age_H.astype(np.float32))
        return pa.RecordBatch.from_pydict(columns)
