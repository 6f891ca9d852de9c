"""Reads a product of a combined stream: its rows with the columns of the joined schema.

Legend: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

import exfm
from exfm.sources import BAD_ROW, ROW_NUMBER, Origin, StreamPart, Window, column_times, example_ids, splitmix64
from exfm_plugins.sources.combined.union import DOMAIN, EVENT_TIME, EXAMPLE_ID, Filling


@dataclass(frozen=True)
class Product:
    """A source of a combined stream.

    Attributes:
        name: its name, which is the rows' domain.
        source: yields its rows.
    """

    name: str
    source: exfm.DataSource

    def parts(self) -> Iterator[StreamPart]:
        """Yields its units, under names that no other product has."""
        for unit in self.source.parts():
            yield replace(unit, name=self.unit_name(unit.name))

    def pin(self, parts: Sequence[StreamPart]) -> bool:
        """Reads its units among those that another process has listed; returns whether it does."""
        listed: list[StreamPart] = []
        for unit in parts:
            name = unit.name.removeprefix(self.unit_name(""))
            if name != unit.name:
                listed.append(replace(unit, name=name))
        if type(self.source).pin is not exfm.DataSource.pin:
            return self.source.pin(listed)
        # Names and versions may differ between machines that hold copies; which time each covers may not.
        return _extents(self.source.parts()) == _extents(listed)

    def unit_name(self, name: str) -> str:
        """Returns the name of a unit of the product, such as a file, in the combined stream."""
        return f"{self.name}: {name}"

    def example_ids(self, column: pa.Array) -> pa.Array:
        """Returns ids that no other product has: each id and the product's name are hashed together.

        The hash is a bijection of the ids of a product, so that no two of them get the same.
        """
        ids = example_ids(column)
        key = example_ids(pa.array([self.name])).to_numpy().view(np.uint64)
        missing_B = ids.is_null().to_numpy(zero_copy_only=False)
        ids_B = ids.fill_null(0).to_numpy().view(np.uint64)
        return pa.array(splitmix64(ids_B ^ key).view(np.int64), mask=missing_B)


class ProductReader:
    """Reads the rows of a window of a product, a batch ahead.

    Args:
        product: the product.
        columns: the product's columns that are read, by the joined schema's column.
        window: the window.

    Attributes:
        columns: as above.
        batch: the next batch, with the joined schema's columns that the product has; None at the end.
        floor_us: a time before which neither this batch nor a later has a row.
    """

    def __init__(self, product: Product, columns: Mapping[str, str], window: Window) -> None:
        self.columns = columns
        self._product = product
        self._end_us = window.end_us
        self._batches = iter(product.source.read(window))
        self.floor_us = window.start_us
        self.batch: pa.RecordBatch | None = None
        self._read()

    def next(self) -> pa.RecordBatch:
        """Returns the batch, and reads the batch after it."""
        batch = self.batch
        assert batch is not None
        self._read(Origin.from_batch(batch).next_us)
        return batch

    def close(self) -> None:
        """Ends the reading of the product."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def _read(self, next_us: int | None = None) -> None:
        """Reads a batch, and finds the earliest time that may follow."""
        batch = next(self._batches, None)
        self.batch = None if batch is None else self._renamed(batch)
        if self.batch is None:
            self.floor_us = self._end_us
        elif self._product.source.in_order:
            self.floor_us = max(self.floor_us, _first_time(self.batch, self.floor_us))
        else:
            self.floor_us = max(self.floor_us, next_us or self.floor_us)

    def _renamed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Gives columns the joined schema's names; those that the batch lacks stay absent, and the core names them."""
        origin = Origin.from_batch(batch)
        columns: dict[str, pa.Array] = {}
        for name, column in self.columns.items():
            if column in batch.schema.names:
                columns[name] = batch.column(column)
        if EXAMPLE_ID in columns and _may_be_ids(columns[EXAMPLE_ID].type):
            columns[EXAMPLE_ID] = self._product.example_ids(columns[EXAMPLE_ID])
        if EVENT_TIME in columns and pa.types.is_timestamp(columns[EVENT_TIME].type):
            columns[EVENT_TIME] = _microseconds(columns[EVENT_TIME])
        columns[DOMAIN] = pa.repeat(pa.scalar(self._product.name), batch.num_rows)
        for name in (BAD_ROW, ROW_NUMBER):
            if name in batch.schema.names:
                columns[name] = batch.column(name)
        renamed = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
        return replace(origin, file=self._product.unit_name(origin.file)).mark(renamed)


def merge(
    readers: Sequence[ProductReader], fillings: Mapping[str, Filling], columns: Sequence[str], end_us: int
) -> Iterator[pa.RecordBatch]:
    """Yields the batches of products, each with a time before which no later batch has a row.

    Args:
        readers: of a window.
        fillings: what stands in a column that a product lacks.
        columns: all columns of the joined schema.
        end_us: end of the window.
    """
    types = _types(readers)
    while True:
        waiting = [reader for reader in readers if reader.batch is not None]
        if not waiting:
            return
        # The product that lags behind, so that few rows of the others wait for it.
        reader = min(waiting, key=lambda reader: reader.floor_us)
        batch = reader.next()
        next_us = min(end_us, *(reader.floor_us for reader in readers))
        filled = _filled(batch, reader, fillings, columns, types)
        yield replace(Origin.from_batch(batch), next_us=next_us).mark(filled)


def _filled(
    batch: pa.RecordBatch,
    reader: ProductReader,
    fillings: Mapping[str, Filling],
    columns: Sequence[str],
    types: Mapping[str, pa.DataType],
) -> pa.RecordBatch:
    """Adds the columns that a product lacks, and puts all into the order of the joined schema."""
    arrays: dict[str, pa.Array] = {}
    for name in (*columns, BAD_ROW, ROW_NUMBER):
        if name in batch.schema.names:
            arrays[name] = batch.column(name)
        elif name in columns and name not in reader.columns:
            arrays[name] = _filling(fillings[name], types.get(name), batch.num_rows)
    return pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))


def _types(readers: Sequence[ProductReader]) -> dict[str, pa.DataType]:
    """Returns the type of each column in the first batch that has it."""
    types: dict[str, pa.DataType] = {}
    for reader in readers:
        if reader.batch is not None:
            for field in reader.batch.schema:
                types.setdefault(field.name, field.type)
    return types


def _filling(filling: Filling, kind: pa.DataType | None, rows: int) -> pa.Array:
    """Makes a column that a product lacks, of the type of the others, so that all batches have the same types."""
    if filling == "one":
        return pa.repeat(pa.scalar(1, kind or pa.float64()), rows)
    if filling == "null":
        return pa.nulls(rows, kind or pa.null())
    return pa.repeat(pa.scalar([], kind or pa.list_(pa.null())), rows)


def _extents(parts: Sequence[StreamPart]) -> list[tuple[int, int]]:
    return sorted((unit.first_us, unit.last_us) for unit in parts)


def _first_time(batch: pa.RecordBatch, otherwise: int) -> int:
    if EVENT_TIME not in batch.schema.names or not pa.types.is_timestamp(batch.column(EVENT_TIME).type):
        return otherwise
    times = batch.column(EVENT_TIME).drop_null()
    return int(column_times(times, "timestamp").min()) if len(times) else otherwise


def _microseconds(column: pa.Array) -> pa.Array:
    missing_B = column.is_null().to_numpy(zero_copy_only=False)
    times_B = np.zeros(len(column), np.int64)
    times_B[~missing_B] = column_times(column.drop_null(), "timestamp")
    return pa.array(times_B, mask=missing_B).view(pa.timestamp("us"))


def _may_be_ids(kind: pa.DataType) -> bool:
    """Tells whether a type can hold example ids; the core names the others."""
    types = pa.types
    return not (types.is_floating(kind) or types.is_nested(kind) or types.is_temporal(kind) or types.is_decimal(kind))
