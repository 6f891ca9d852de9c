"""Reads the released events, and the artists and albums of tracks.

Legend: N events in the released order, I tracks by their ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

import exfm

EVENTS = "multi_event.parquet"
LISTEN_PLUS, SKIP, LIKE, DISLIKE, UNLIKE, UNDISLIKE = range(6)
KINDS = 6
LISTEN_PLUS_PERCENT = 50
"""Share of a track from which a listen is a real listen, and not a skip; that of MLPerf's benchmark."""

# Event types by the kind of their events; a listen is a skip until its ratio is known.
_TYPES = {"listen": SKIP, "like": LIKE, "dislike": DISLIKE, "unlike": UNLIKE, "undislike": UNDISLIKE}
_IDS = {"uid": np.uint32, "timestamp": np.uint32, "item_id": np.uint32, "is_organic": np.uint8}
_COLUMNS = (*_IDS, "event_type", "played_ratio_pct")
_BATCH_ROWS = 1 << 20


@dataclass(frozen=True)
class Events:
    """Holds all events in the released order; 14 bytes each.

    Attributes:
        user_N, item_N: the released ids of users and tracks.
        second_N: seconds from the beginning of the release's clock, in steps of five.
        organic_N: 1 if the user chose the track, 0 if it was recommended.
        kind_N: LISTEN_PLUS, SKIP, LIKE, DISLIKE, UNLIKE or UNDISLIKE.
    """

    user_N: NDArray[np.uint32]
    item_N: NDArray[np.uint32]
    second_N: NDArray[np.uint32]
    organic_N: NDArray[np.uint8]
    kind_N: NDArray[np.uint8]


def read_events(folder: str) -> Events:
    """Reads ``multi_event.parquet``.

    Raises:
        ValueError: there is no such file, it lacks a column, a value is missing or no event type, or it has no events.
    """
    url = f"{folder.rstrip('/')}/{EVENTS}"
    with _open(url, _COLUMNS) as file:
        rows = file.metadata.num_rows
        if not rows:
            raise ValueError(f"yambda: path: {url!r} holds no events")
        columns: dict[str, NDArray[Any]] = {name: np.empty(rows, dtype) for name, dtype in _IDS.items()}
        kind_N = np.empty(rows, np.uint8)
        first = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS)):
            span = slice(first, first + batch.num_rows)
            for name, values_N in columns.items():
                values_N[span] = _present(batch, name, url, first)
            kind_N[span] = _kinds(batch, url, first)
            first = span.stop
    return Events(columns["uid"], columns["item_id"], columns["timestamp"], columns["is_organic"], kind_N)


def read_mapping(folder: str, name: str) -> NDArray[np.uint32]:
    """Reads the first artist, or album, of every track, 0 where the release names none, (I,).

    Args:
        name: ``artist`` or ``album``.

    Raises:
        ValueError: there is no such file, or it lacks a column.
    """
    url = f"{folder.rstrip('/')}/{name}_item_mapping.parquet"
    with _open(url, (f"{name}_id", "item_id")) as file:
        table = file.read([f"{name}_id", "item_id"])
    item = table["item_id"].to_numpy().astype(np.int64)
    first_I = np.zeros(int(item.max(initial=-1)) + 1, np.uint32)
    # In reverse, because of several values that are assigned to a track the last stays.
    first_I[item[::-1]] = table[f"{name}_id"].to_numpy()[::-1]
    return first_I


def _open(url: str, columns: tuple[str, ...]) -> pq.ParquetFile:
    filesystem, path = fsspec.url_to_fs(url)
    if not filesystem.exists(path):
        raise ValueError(f"yambda: path: there is no file {url!r}; `exfm data get yambda_50m` downloads it")
    file = pq.ParquetFile(path, filesystem=filesystem)
    for column in columns:
        if column not in file.schema_arrow.names:
            near = exfm.components.suggestion(column, file.schema_arrow.names)
            raise ValueError(f"yambda: {url} has no column {column!r}.{near}")
    return file


def _present(batch: pa.RecordBatch, name: str, url: str, first: int) -> NDArray[Any]:
    """Returns the values of a column without nulls."""
    column = batch.column(name)
    if column.null_count:
        row = first + int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise ValueError(f"yambda: {url}, row {row}: {name}: the value is missing")
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _kinds(batch: pa.RecordBatch, url: str, first: int) -> NDArray[np.uint8]:
    """Returns the kind of each event. A listen without a ratio counts as a skip, as in MLPerf's benchmark."""
    types = batch.column("event_type").cast(pa.string())
    index = pc.index_in(types, value_set=pa.array(list(_TYPES)))
    if index.null_count:
        position = int(index.is_null().to_numpy(zero_copy_only=False).argmax())
        raise ValueError(
            f"yambda: {url}, row {first + position}: event_type: allowed: {', '.join(_TYPES)}; "
            f"given: {types[position].as_py()!r}"
        )
    kind: NDArray[np.uint8] = np.array(list(_TYPES.values()), np.uint8)[index.to_numpy()]
    ratio = pc.fill_null(batch.column("played_ratio_pct").cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    kind[(kind == SKIP) & (ratio >= LISTEN_PLUS_PERCENT)] = LISTEN_PLUS
    return kind


def earlier_events(events: Events) -> NDArray[np.int64]:
    """Counts the events of the same user that are strictly earlier than each event, (N,)."""
    user_N, second_N = events.user_N, events.second_N
    order = np.lexsort((second_N, user_N))
    user, second = user_N[order], second_N[order]
    position = np.arange(order.size)
    is_new_user = np.diff(user.astype(np.int64), prepend=-1) != 0
    is_new_time = is_new_user | (np.diff(second.astype(np.int64), prepend=-1) != 0)
    since_user = np.maximum.accumulate(np.where(is_new_user, position, 0))
    since_time = np.maximum.accumulate(np.where(is_new_time, position, 0))
    earlier_N = np.empty(order.size, np.int64)
    earlier_N[order] = since_time - since_user
    return earlier_N
