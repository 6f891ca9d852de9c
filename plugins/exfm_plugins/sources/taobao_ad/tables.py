"""Parses the released files into columns: impressions sorted by time, behaviours by user, users and ads by their ids.

Legend: N impressions, E behaviours, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import exfm
from exfm.sources import DelimitedFile, Histories

Behavior = Literal["pv", "cart", "fav", "buy"]
BEHAVIORS: tuple[Behavior, ...] = ("pv", "cart", "fav", "buy")

_INT, _LONG = pa.int32(), pa.int64()
_SAMPLE = {"user": _INT, "time_stamp": _LONG, "adgroup_id": _INT, "pid": pa.string(), "clk": pa.int8()}
_LOG = {"user": _INT, "time_stamp": _LONG, "btag": pa.string(), "cate": _INT, "brand": _INT}
_AD = {"adgroup_id": _INT, "cate_id": _INT, "campaign_id": _INT, "customer": _INT, "brand": _INT, "price": pa.float32()}
PROFILE = (
    "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level", "occupation",
    "new_user_class_level",
)  # fmt: skip


@dataclass(frozen=True)
class Impressions:
    """Holds all impressions, sorted by time, in the released order within a second; 18 bytes each.

    Attributes:
        user_N, second_N, ad_N, click_N: the released columns.
        pid_N: index of the position in ``pids``.
    """

    user_N: NDArray[np.int32]
    second_N: NDArray[np.int64]
    ad_N: NDArray[np.int32]
    click_N: NDArray[np.int8]
    pid_N: NDArray[np.int8]
    pids: pa.Array


@dataclass(frozen=True)
class Behaviors:
    """Holds behaviours sorted by user and time; 25 bytes each, and some 60 while they are sorted.

    Attributes:
        histories: index that finds the behaviours before an impression.
        second_E, cate_E, brand_E: the released columns; a missing category or brand is -1.
        kind_E: index into BEHAVIORS.
    """

    histories: Histories
    second_E: NDArray[np.int64]
    cate_E: NDArray[np.int32]
    brand_E: NDArray[np.int32]
    kind_E: NDArray[np.int8]


class Attributes:
    """Looks up the attributes of users or ads by id.

    Args:
        table: a column of ids, and the columns of attributes.
        key: name of the column of ids.
        file: name of the file, for messages.
    """

    def __init__(self, table: pa.Table, key: str, file: str) -> None:
        ids = table[key].combine_chunks().fill_null(-1).to_numpy()
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        if (self._ids[1:] == self._ids[:-1]).any() or (ids < 0).any():
            raise ValueError(f"taobao_ad: {file}: expected a column {key!r} of ids that are unique and not negative")
        self._table = table.drop_columns([key]).take(pa.array(order)).combine_chunks()

    def contains(self, ids_B: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Tells for each id whether it has attributes, (B,)."""
        if not self._ids.size:
            return np.zeros(ids_B.size, bool)
        contained: NDArray[np.bool_] = self._ids[self._rows(ids_B)] == ids_B
        return contained

    def select(self, ids_B: NDArray[np.int32]) -> dict[str, pa.Array]:
        """Returns the columns of B ids, null for ids without attributes."""
        rows = self._table.take(pa.array(self._rows(ids_B), mask=~self.contains(ids_B)))
        return {name: rows[name].combine_chunks() for name in rows.column_names}

    def _rows(self, ids_B: NDArray[np.int32]) -> NDArray[np.int64]:
        # The minimum keeps the row valid for an id above all others; `contains` tells that it does not match.
        return np.minimum(np.searchsorted(self._ids, ids_B), max(self._ids.size - 1, 0))


def read_impressions(url: str) -> Impressions:
    """Reads and sorts raw_sample.csv.

    Raises:
        ValueError: the file does not exist, it is empty, or a line cannot be read or lacks a value.
    """
    pids: list[str] = []
    file = _file(url, "raw_sample.csv", _SAMPLE)
    batches = [_impressions(batch, pids) for batch in _complete(file, tuple(_SAMPLE))]
    if not batches:
        raise ValueError(f"taobao_ad: {url}/raw_sample.csv holds no rows")
    user, second, ad, click, pid = _joined(batches)
    order = np.argsort(second, kind="stable")
    return Impressions(user[order], second[order], ad[order], click[order], pid[order], pa.array(pids))


def read_behaviors(url: str, kinds: Sequence[Behavior]) -> Behaviors:
    """Reads and sorts the behaviours of some kinds in behavior_log.csv.

    Raises:
        ValueError: the file does not exist, or a line cannot be read, lacks user or time or has an undefined ``btag``.
    """
    kept = [BEHAVIORS.index(kind) for kind in kinds]
    log = _file(url, "behavior_log.csv", _LOG)
    # An empty batch first, so that a log without rows of these kinds has columns too.
    empty = tuple(np.zeros(0, kind) for kind in (np.int32, np.int64, np.int32, np.int32, np.int8))
    batches = [_behaviors(batch, kept) for batch in _complete(log, ("user", "time_stamp"))]
    user, second, cate, brand, kind = _joined([empty, *batches])
    histories = Histories(user, second)
    second, cate, brand, kind = (column[histories.order] for column in (second, cate, brand, kind))
    del histories.order  # the columns are in this order now, and 700 million numbers take 5.6 GB
    return Behaviors(histories, second, cate, brand, kind)


def read_ads(url: str) -> Attributes:
    """Reads ad_feature.csv: category, campaign, customer, brand and price by ad."""
    return _attributes(url, "ad_feature.csv", _AD, "adgroup_id")


def read_users(url: str) -> Attributes:
    """Reads user_profile.csv: PROFILE by user."""
    return _attributes(url, "user_profile.csv", {"userid": _INT} | dict.fromkeys(PROFILE, _INT), "userid")


def _attributes(url: str, name: str, columns: Mapping[str, pa.DataType], key: str) -> Attributes:
    file = _file(url, name, columns)
    batches = [batch.replace_schema_metadata(None) for batch in file.read(0, file.rows)]
    return Attributes(pa.Table.from_batches(batches, pa.schema(columns)), key, file.url)


def _file(url: str, name: str, columns: Mapping[str, pa.DataType]) -> DelimitedFile:
    path = f"{url.rstrip('/')}/{name}"
    return DelimitedFile(path, columns, owner="taobao_ad", header=True, nulls=("", "NULL"))


def _complete(file: DelimitedFile, needed: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a file, and raises ValueError at a row that lacks a needed value."""
    for batch in file.read(0, file.rows):
        for name in needed:
            if batch[name].null_count:
                origin = exfm.sources.Origin.from_batch(batch)
                row = origin.row + int(batch[name].is_null().to_numpy(zero_copy_only=False).argmax())
                raise ValueError(f"taobao_ad: {origin.file}, row {row}: {name}: the value is missing")
        yield batch


def _impressions(batch: pa.RecordBatch, pids: list[str]) -> tuple[NDArray[Any], ...]:
    """Converts a batch to columns, and appends new positions to ``pids``."""
    encoded = batch["pid"].dictionary_encode()
    names = encoded.dictionary.to_pylist()
    pids += [name for name in names if name not in pids]
    # Dictionaries differ between batches: translate each to the indices of all positions.
    code = np.array([pids.index(name) for name in names], np.int8)
    numbers = (batch[name].to_numpy() for name in ("user", "time_stamp", "adgroup_id", "clk"))
    return *numbers, code[encoded.indices.to_numpy()]


def _behaviors(batch: pa.RecordBatch, kept: list[int]) -> tuple[NDArray[Any], ...]:
    kind = pc.index_in(batch["btag"], pa.array(BEHAVIORS))
    if kind.null_count:
        origin = exfm.sources.Origin.from_batch(batch)
        row = int(kind.is_null().to_numpy(zero_copy_only=False).argmax())
        raise ValueError(
            f"taobao_ad: {origin.file}, row {origin.row + row}: btag: expected one of {', '.join(BEHAVIORS)}, "
            f"given {batch['btag'][row]}"
        )
    kind_B = kind.to_numpy().astype(np.int8)
    selected_B = np.isin(kind_B, kept)
    numbers = (batch[name].fill_null(-1).to_numpy()[selected_B] for name in ("user", "time_stamp", "cate", "brand"))
    return *numbers, kind_B[selected_B]


def _joined(batches: list[tuple[NDArray[Any], ...]]) -> list[NDArray[Any]]:
    return [np.concatenate(columns) for columns in zip(*batches, strict=True)]
