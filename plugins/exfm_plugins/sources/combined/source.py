"""Streams several sources as a single stream, with a schema of all their features."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

import exfm
from exfm.components import ComponentField, ComponentSpec
from exfm.sources import Shard, StreamPart, TimeRange, Window, slice_rows
from exfm_plugins.sources.combined.product import Product, ProductReader, merge
from exfm_plugins.sources.combined.union import join_schemas, narrow

logger = logging.getLogger(__name__)

SourceSpec = Annotated[ComponentSpec, ComponentField("data_source")]
_WHOLE = Shard()


class Combined(exfm.DataSource):
    """Streams the logs of several products as a single stream, for an FM over all of them and a VM for each.

    Each product is a data source with its schema. The stream has all their features and labels, by name: features that
    have the same name in two products have to be the same, with the same table, and share it. ``apart`` lists names
    that each product has for itself, as ``PRODUCT_NAME``. In the rows of a product, features that it lacks are missing
    (null, or an empty list), and labels that it lacks are not known. A dense feature has to be in all products.

    ``domain`` is the product's name, a column for ``where`` and a feature. Example ids are hashed with it, so that
    those of two products differ. ``group`` is as the products have it: users of the same id are the same user. Rows are
    merged in the order of time, and of example ids where times are equal. The stream begins with the first product, and
    is complete until the product that is behind the others ends: later rows of the others are read when it has come as
    far.

    Raises:
        ValueError: products disagree on a name, a product lacks a dense feature of another, or what its source raises.
    """

    name: ClassVar[str] = "combined"
    in_order: ClassVar[bool] = False

    class Config(exfm.ComponentConfig):
        """Configures the products."""

        sources: dict[str, SourceSpec] = Field(
            min_length=2, description="The data source of each product, by the product's name, which is its domain."
        )
        apart: tuple[str, ...] = Field(
            (), description="Features, labels and tables that each product has for itself, as PRODUCT_NAME."
        )

        @field_validator("sources")
        @classmethod
        def _check_names(cls, sources: dict[str, ComponentSpec]) -> dict[str, ComponentSpec]:
            for name in sources:
                if not name.isidentifier():
                    raise ValueError(f"a product's name is of letters, digits and '_', and not {name!r}")
            return sources

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._products = [Product(name, spec.build()) for name, spec in config.sources.items()]
        schemas = {product.name: product.source.schema() for product in self._products}
        self._union = join_schemas(schemas, config.apart)
        self._end_us: int | None = None
        self._has_warned = False

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns the features and labels of all products."""
        return self._union.schema

    def time_range(self) -> TimeRange:
        """Returns the range from the first product's beginning to the earliest end of a product."""
        ranges = {product.name: product.source.time_range() for product in self._products}
        first = min(ranges, key=lambda name: ranges[name].end_us)
        end_us = ranges[first].end_us
        for name, time in ranges.items():
            if time.start_us >= end_us:
                raise exfm.components.NotYetError(
                    f"combined: {name} begins at {_utc(time.start_us)}, and {first} ends at {_utc(end_us)}: nothing of "
                    f"{name} would be read"
                )
        last = max(ranges, key=lambda name: ranges[name].end_us)
        if ranges[last].end_us > end_us and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "combined: %s ends at %s, and so does the stream; rows of %s until %s wait for it",
                *(first, _utc(end_us), last, _utc(ranges[last].end_us)),
            )
        self._end_us = end_us
        return TimeRange(min(time.start_us for time in ranges.values()), end_us)

    def read(self, window: Window, shard: Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows of all products, those that are complete as of the last ``time_range``."""
        return slice_rows(self._window(window), shard)

    def parts(self) -> Sequence[StreamPart]:
        """Returns the units of all products."""
        parts: list[StreamPart] = []
        for product in self._products:
            parts += product.parts()
        return parts

    def pin(self, parts: Sequence[StreamPart]) -> bool:
        """Reads the units that another process has listed: each product pins its own, or has the same."""
        # Every product pins, whatever the others answer.
        agrees = [product.pin(parts) for product in self._products]
        return all(agrees)

    def next_event_us(self, from_us: int) -> int | None:
        """Returns the first event of any product at or after a time, as the products know it."""
        answers = [product.source.next_event_us(from_us) for product in self._products]
        return min((answer for answer in answers if answer is not None), default=None)

    def select(self, schema: exfm.schema.FeatureSchema) -> Combined:
        """Returns the stream with fewer columns, which each product selects."""
        selected = copy(self)
        selected._products = [
            Product(product.name, product.source.select(self._narrowed(product, schema))) for product in self._products
        ]
        selected._union = replace(self._union, schema=schema)
        return selected

    def _narrowed(self, product: Product, schema: exfm.schema.FeatureSchema) -> exfm.schema.FeatureSchema:
        return narrow(product.source.schema(), product.name, self.config.apart, schema)

    def _window(self, window: Window) -> Iterator[pa.RecordBatch]:
        if self._end_us is None:
            self.time_range()
        assert self._end_us is not None
        end_us = min(window.end_us, self._end_us)
        if end_us <= window.start_us:
            return
        clipped = Window(window.index, window.start_us, end_us)
        columns = self._union.schema.columns
        with ExitStack() as stack:
            readers: list[ProductReader] = []
            for product in self._products:
                names = self._union.columns[product.name]
                reader = ProductReader(product, {name: names[name] for name in columns if name in names}, clipped)
                stack.callback(reader.close)
                readers.append(reader)
            yield from merge(readers, self._union.fillings, columns, end_us)


def _utc(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
