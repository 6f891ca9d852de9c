"""Streams the listens of Yambda in time order.

Legend: N events in the released order, B rows, H events of histories.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator

import exfm
from exfm.sources import Histories, list_column, splitmix64
from exfm_plugins.sources.yambda.downloads import DOWNLOADS
from exfm_plugins.sources.yambda.events import (
    KINDS,
    LIKE,
    LISTEN_PLUS,
    SKIP,
    Events,
    earlier_events,
    read_events,
    read_mapping,
)

_US = 1_000_000
_WHOLE = exfm.sources.Shard()
_EVENTS_AT_ONCE = 1 << 20
"""Events of histories in a batch, which bound its memory."""
_CROSSES = {
    "user_x_artist": ("uid", "artist_id"),
    "user_x_album": ("uid", "album_id"),
    "user_x_hour": ("uid", "hour"),
    "item_x_hour": ("item_id", "hour"),
    "artist_x_hour": ("artist_id", "hour"),
    "user_x_is_organic": ("uid", "is_organic"),
    "user_x_artist_x_hour": ("uid", "artist_id", "hour"),
}
_ROWS = {"uid": 65_536, "item_id": 1_048_576, "artist_id": 262_144, "album_id": 524_288}
_ROWS |= dict.fromkeys(_CROSSES, 1_048_576)
_POOLS = (LISTEN_PLUS, LIKE, SKIP)


class Yambda(exfm.DataSource):
    """Streams the listens of Yandex Music (arXiv 2505.22238), with the rows and features of MLPerf's ``dlrm_v4_hstu``.

    It reads the flat files as released (huggingface.co/datasets/yandex/yambda): ``multi_event.parquet``, and the
    mappings of tracks to artists and albums. A row is a listen; its label ``listen_plus`` is 1 if half of the track was
    played, and 0 for a skip. Listens that the user chose and those that were recommended are two domains,
    ``is_organic``. Rows are sorted by time, in the released order at equal times; ``example_id`` is the position in
    that order. The release's clock counts from an unknown moment, in steps of five seconds.

    As in that benchmark, the history has the newest third of ``history_length`` from each of the user's real listens,
    likes and skips, oldest first, with the kind of each event; crosses of ids are hashed; and listens with fewer than
    ``min_history`` earlier events are no rows. Unlike there, events of the row's own five seconds are left out, all of
    a user's past is searched and not 20,000 events, and no users are held out, because each row is predicted before it
    is trained on.

    All events are held in the memory of each process, some 45 bytes each, and twice as much while they are sorted: 2 GB
    for 50m, 20 for 500m, 200 for 5b.

    Raises:
        ValueError: a file is missing or lacks a column, or a value is missing.
    """

    name: ClassVar[str] = "yambda"
    downloads: ClassVar[tuple[exfm.sources.Download, ...]] = DOWNLOADS

    class Config(exfm.ComponentConfig):
        """Configures the location of the files, histories, and the size of tables."""

        path: str = Field(description="Folder with multi_event.parquet and the mappings; any fsspec URL.")
        history_length: int = Field(
            384, ge=3, description="The most events of a history: a third from each of real listens, likes and skips."
        )
        min_history: int = Field(0, ge=0, description="Listens whose user has fewer earlier events are left out.")
        crosses: bool = Field(True, description="Whether pairs of ids, such as user and artist, are features too.")
        rows: dict[str, PositiveInt] = Field(
            default_factory=dict,
            description="Rows of tables, by feature: uid, item_id, artist_id, album_id, user_x_artist ...; others have "
            "sizes for 50m.",
        )

        @field_validator("rows")
        @classmethod
        def _check_rows(cls, rows: dict[str, int]) -> dict[str, int]:
            for name in rows:
                if name not in _ROWS:
                    raise ValueError(f"no table is called {name!r}.{exfm.components.suggestion(name, _ROWS)}")
            return rows

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns user, track, artist, album, hour, origin, the crosses, and the history."""
        rows = _ROWS | self.config.rows
        ids = ["uid", "item_id", "artist_id", "album_id", *(_CROSSES if self.config.crosses else ())]
        shared = ("item_id", "artist_id", "album_id")
        fields = [
            exfm.schema.SequenceField(name=name, column=f"history_{name}", rows=rows[name], table=name)
            for name in shared
        ]
        history = exfm.schema.SequenceFeature(
            name="history",
            max_length=self.config.history_length,
            times=exfm.schema.EventTimes(column="history_age"),
            fields=(
                *fields,
                exfm.schema.SequenceField(name="kind", column="history_kind", rows=KINDS, ids="row"),
                exfm.schema.SequenceField(name="age", column="history_age", kind="dense", transform="log1p"),
            ),
        )
        return exfm.schema.FeatureSchema(
            group="uid",
            domain="is_organic",
            features=(
                *(exfm.schema.CategoricalFeature(name=name, rows=rows[name]) for name in ids),
                exfm.schema.CategoricalFeature(name="hour", rows=24, ids="row"),
                exfm.schema.CategoricalFeature(name="is_organic", rows=2, ids="row"),
                history,
            ),
            labels=(exfm.schema.Label(name="listen_plus"),),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the first to the last listen that is a row."""
        second = self._events.second_N[self._listens[[0, -1]]].astype(np.int64)
        return exfm.sources.TimeRange(int(second[0]) * _US, int(second[1]) * _US + 1)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's listens with their histories; row i of the window belongs to shard ``i % count``."""
        bounds = [-(-window.start_us // _US), -(-window.end_us // _US)]
        # The listens are in the order of time, so their positions are found by bisection.
        start, end = np.searchsorted(self._listen_seconds, bounds)
        mine = np.arange(start + shard.index, end, shard.count)
        batch_rows = max(64, min(8192, _EVENTS_AT_ONCE // self.config.history_length))
        name = f"{self.config.path} (listens, sorted by time)"
        for first in range(0, mine.size, batch_rows):
            rows = mine[first : first + batch_rows]
            yield exfm.sources.Origin(name, int(rows[0])).mark(self._batch(rows))

    @cached_property
    def _events(self) -> Events:
        return read_events(self.config.path)

    @cached_property
    def _listens(self) -> NDArray[np.int64]:
        """The events that are rows, in the order of time and, at equal times, of the release."""
        events = self._events
        is_row = (events.kind_N == LISTEN_PLUS) | (events.kind_N == SKIP)
        if self.config.min_history:
            is_row &= earlier_events(events) >= self.config.min_history
        rows = np.flatnonzero(is_row)
        if not rows.size:
            raise ValueError(
                f"yambda: {self.config.path!r} has no listen with {self.config.min_history} earlier events; lower "
                "min_history"
            )
        return rows[np.argsort(events.second_N[rows], kind="stable")]

    @cached_property
    def _listen_seconds(self) -> NDArray[np.uint32]:
        return self._events.second_N[self._listens]

    @cached_property
    def _item_ids(self) -> dict[str, NDArray[np.uint32]]:
        return {f"{name}_id": read_mapping(self.config.path, name) for name in ("artist", "album")}

    @cached_property
    def _pools(self) -> tuple[tuple[NDArray[np.int64], Histories], ...]:
        """Returns, for each kind of event in histories, its events by user and time, and the index that finds them."""
        events = self._events
        pools: list[tuple[NDArray[np.int64], Histories]] = []
        for kind in _POOLS:
            rows_E = np.flatnonzero(events.kind_N == kind)
            histories = Histories(events.user_N[rows_E], events.second_N[rows_E].astype(np.int64))
            pools.append((rows_E[histories.order], histories))
            del histories.order  # the rows are in this order now, so the index needs no memory for it
        return tuple(pools)

    def _batch(self, row_B: NDArray[np.int64]) -> pa.RecordBatch:
        """Builds all columns of some rows."""
        events, event_B = self._events, self._listens[row_B]
        second_B = events.second_N[event_B].astype(np.int64)
        ids: dict[str, NDArray[np.int64]] = {
            "uid": events.user_N[event_B].astype(np.int64),
            **self._track_ids(event_B),
            "hour": second_B // 3600 % 24,
            "is_organic": events.organic_N[event_B].astype(np.int64),
        }
        if self.config.crosses:
            ids |= {name: _cross([ids[key] for key in keys]) for name, keys in _CROSSES.items()}
        columns: dict[str, Any] = {
            "example_id": row_B,
            "event_time": pa.array(second_B * _US).view(pa.timestamp("us")),
            **ids,
            "listen_plus": (events.kind_N[event_B] == LISTEN_PLUS).astype(np.int8),
        }
        event_H, offsets = self._history(ids["uid"], second_B)
        for name, values_H in self._track_ids(event_H).items():
            columns[f"history_{name}"] = list_column(offsets, values_H)
        age_H = np.repeat(second_B, np.diff(offsets)) - events.second_N[event_H]
        columns["history_kind"] = list_column(offsets, events.kind_N[event_H])
        columns["history_age"] = list_column(offsets, age_H.astype(np.float32))
        return pa.RecordBatch.from_pydict(columns)

    def _history(
        self, user_B: NDArray[np.int64], second_B: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Returns the events of all histories, oldest first, (H,), and the offsets of the rows, (B + 1,)."""
        most = self.config.history_length // len(_POOLS)
        events: list[NDArray[np.int64]] = []
        rows: list[NDArray[np.int64]] = []
        for rows_E, histories in self._pools:
            position, offsets = histories.newest(user_B, second_B, most)
            events.append(rows_E[position])
            rows.append(np.repeat(np.arange(user_B.size), np.diff(offsets)))
        event_H, row_H = np.concatenate(events), np.concatenate(rows)
        # At equal times in the released order, whichever pool an event is from.
        order = np.lexsort((event_H, self._events.second_N[event_H], row_H))
        ends = np.cumsum(np.bincount(row_H, minlength=user_B.size))
        return event_H[order], np.concatenate([[0], ends]).astype(np.int32)

    def _track_ids(self, event: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Returns the tracks of some events with their artists and albums; 0 where the release names none."""
        item = self._events.item_N[event].astype(np.int64)
        ids = {"item_id": item}
        for name, first_I in self._item_ids.items():
            is_named = item < first_I.size
            ids[name] = np.where(is_named, first_I[np.where(is_named, item, 0)], 0).astype(np.int64)
        return ids


def _cross(ids: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Hashes each combination of ids to 64 bits."""
    crossed = np.zeros(ids[0].size, np.uint64)
    for values in ids:
        # Plus 1, because splitmix64 maps 0 to 0; the order of the ids counts, because each is mixed in turn.
        crossed = splitmix64(crossed ^ (values.astype(np.uint64) + np.uint64(1)))
    return crossed.view(np.int64)
