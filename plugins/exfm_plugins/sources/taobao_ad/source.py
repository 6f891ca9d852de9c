"""Streams the impressions of Taobao display ads in time order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

import exfm
from exfm.sources import list_column
from exfm_plugins.sources.taobao_ad.downloads import DOWNLOADS
from exfm_plugins.sources.taobao_ad.tables import (
    BEHAVIORS,
    PROFILE,
    Attributes,
    Behavior,
    Behaviors,
    Impressions,
    read_ads,
    read_behaviors,
    read_impressions,
    read_users,
)

# Number of distinct values of each column in the released files.
_CARDINALITY = {
    "user": 1_141_729, "adgroup_id": 846_811, "cate_id": 12_977, "campaign_id": 423_436, "customer": 255_875,
    "brand": 461_497,
}  # fmt: skip
# Powers of two above the largest released codes.
_PROFILE_ROWS = dict(zip(PROFILE, (128, 16, 4, 8, 4, 4, 4, 8), strict=True))
_BATCH_ROWS = 8192
_MICROSECONDS = 1_000_000
_WHOLE = exfm.sources.Shard()


class TaobaoAd(exfm.DataSource):
    """Streams Ali's display ads on Taobao: 26 million impressions of 8 days, 700 million behaviours of 22 days.

    It reads the files as published (tianchi.aliyun.com/dataset/56): ``raw_sample.csv`` (user, time_stamp, adgroup_id,
    pid, nonclk, clk), ``ad_feature.csv`` (adgroup_id, cate_id, campaign_id, customer, brand, price),
    ``user_profile.csv`` (userid, cms_segid, ..., new_user_class_level; missing for 5% of the users) and
    ``behavior_log.csv`` (user, time_stamp, btag, cate, brand). Impressions are not released in order of time, and are
    sorted by it; ``example_id`` is the position in that order. A row's history is its user's newest behaviours of
    strictly earlier seconds. The domain is ``pid``, the position of the ad.

    Memory holds 18 bytes per impression (0.5 GB) and 25 per behaviour (18 GB; more than twice that while they are
    sorted). Without ``pv``, page views, a twentieth of the behaviours remains; without behaviours, the log is not read.

    Raises:
        ValueError: a file is missing, a line cannot be read, or the ad of an impression is not in ad_feature.csv.
    """

    name: ClassVar[str] = "taobao_ad"
    downloads: ClassVar[tuple[exfm.sources.Download, ...]] = DOWNLOADS

    class Config(exfm.ComponentConfig):
        """Configures the location of the files, and the behaviours in histories."""

        path: str = Field(description="Folder with the four released files, unpacked; any fsspec URL.")
        history_length: int = Field(50, gt=0, description="The user's newest earlier behaviours that a row carries.")
        behaviors: tuple[Behavior, ...] = Field(
            BEHAVIORS, description="Which behaviours make the history: pv, cart, fav, buy; none for no history."
        )
        table_rows: int = Field(262_144, gt=0, description="The most rows of a table; several have more values.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns the released columns, and the history unless ``behaviors`` is empty."""
        rows = {name: min(4 * count, self.config.table_rows) for name, count in _CARDINALITY.items()}
        history = exfm.schema.SequenceFeature(
            name="history",
            max_length=self.config.history_length,
            times=exfm.schema.EventTimes(column="history_age"),
            fields=(
                exfm.schema.SequenceField(name="cate", column="history_cate", rows=rows["cate_id"], table="cate_id"),
                exfm.schema.SequenceField(name="brand", column="history_brand", rows=rows["brand"], table="brand"),
                exfm.schema.SequenceField(name="behavior", column="history_behavior", rows=len(BEHAVIORS), ids="row"),
                exfm.schema.SequenceField(name="age", column="history_age", kind="dense", transform="log1p"),
            ),
        )
        return exfm.schema.FeatureSchema(
            group="user",
            domain="pid",
            features=(
                *(exfm.schema.CategoricalFeature(name=name, rows=count) for name, count in rows.items()),
                *(exfm.schema.CategoricalFeature(name=n, rows=count, ids="row") for n, count in _PROFILE_ROWS.items()),
                exfm.schema.CategoricalFeature(name="pid", rows=16),
                exfm.schema.DenseFeature(name="price", transform="log1p"),
                *((history,) if self.config.behaviors else ()),
            ),
            labels=(exfm.schema.Label(name="click"),),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the first to the last impression."""
        second = self._impressions.second_N
        return exfm.sources.TimeRange(int(second[0]) * _MICROSECONDS, int(second[-1]) * _MICROSECONDS + 1)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's impressions; row i of the window belongs to shard ``i % count``."""
        bounds = [-(-window.start_us // _MICROSECONDS), -(-window.end_us // _MICROSECONDS)]
        start, end = np.searchsorted(self._impressions.second_N, bounds)
        mine = np.arange(start + shard.index, end, shard.count)
        for first in range(0, mine.size, _BATCH_ROWS):
            rows = mine[first : first + _BATCH_ROWS]
            file = f"{self.config.path}/raw_sample.csv (sorted by time)"
            yield exfm.sources.Origin(file, int(rows[0])).mark(self._batch(rows))

    @cached_property
    def _impressions(self) -> Impressions:
        impressions = read_impressions(self.config.path)
        missing = impressions.ad_N[~self._ads.contains(impressions.ad_N)]
        if missing.size:
            shown = f"{self.config.path}/raw_sample.csv shows the ad {missing[0]}"
            raise ValueError(f"taobao_ad: {shown}, which is not in ad_feature.csv")
        return impressions

    @cached_property
    def _behaviors(self) -> Behaviors:
        return read_behaviors(self.config.path, self.config.behaviors)

    @cached_property
    def _ads(self) -> Attributes:
        return read_ads(self.config.path)

    @cached_property
    def _users(self) -> Attributes:
        return read_users(self.config.path)

    def _batch(self, row_B: NDArray[np.int64]) -> pa.RecordBatch:
        shown = self._impressions
        user, second = shown.user_N[row_B], shown.second_N[row_B]
        columns = {
            "example_id": row_B,
            "event_time": pa.array(second * _MICROSECONDS).view(pa.timestamp("us")),
            "user": user,
            "adgroup_id": shown.ad_N[row_B],
            "pid": pa.DictionaryArray.from_arrays(pa.array(shown.pid_N[row_B]), shown.pids),
            "click": shown.click_N[row_B],
            **self._ads.select(shown.ad_N[row_B]),
            **self._users.select(user),
        }
        if self.config.behaviors:
            columns |= self._history(user, second)
        return pa.RecordBatch.from_pydict(columns)

    def _history(self, user_B: NDArray[np.int32], second_B: NDArray[np.int64]) -> dict[str, pa.Array]:
        behaviors = self._behaviors
        event_H, offsets = behaviors.histories.newest(user_B, second_B, self.config.history_length)
        age_H = np.repeat(second_B, np.diff(offsets)) - behaviors.second_E[event_H]
        return {
            "history_cate": list_column(offsets, behaviors.cate_E[event_H]),
            "history_brand": list_column(offsets, behaviors.brand_E[event_H]),
            "history_behavior": list_column(offsets, behaviors.kind_E[event_H]),
            "history_age": list_column(offsets, age_H.astype(np.float32)),
        }
