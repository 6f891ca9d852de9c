"""Rows and topics that the tests of `kafka` share."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa
import pytest

import exfm
from exfm.config.experiment import StreamConfig
from exfm.data.stream import ChunkReader
from exfm_plugins.sources.kafka.source import Kafka
from tests.plugins.kafka_broker import Cluster, kafka_cluster
from tests.plugins.tables import ordered_batches

FEATURES: list[dict[str, Any]] = [
    {"name": "item", "kind": "categorical", "rows": 100},
    {"name": "country", "kind": "categorical", "rows": 100},
    {"name": "tags", "kind": "multi_valued", "rows": 50},
    {"name": "price", "kind": "dense"},
    {"name": "history", "kind": "sequence", "max_length": 3, "fields": [{"name": "word", "rows": 9}]},
]
FIELDS: dict[str, Any] = {
    "features": FEATURES,
    "labels": [{"name": "click"}],
    "strings": ["word", "country"],
    # Quick to connect again after a cut, and to come back from the end of a partition.
    "options": {
        "reconnect.backoff.ms": 2,
        "reconnect.backoff.max.ms": 10,
        "retry.backoff.ms": 2,
        "fetch.error.backoff.ms": 2,
        "fetch.wait.max.ms": 1,
        "log_level": 0,
    },
}
OLD = 1000  # a message of 1970: its partition is idle
US = 1000  # microseconds of the milliseconds in which rows count
CHUNK = 16
"""Offsets of a chunk in these tests."""


@contextmanager
def small_cluster() -> Iterator[Cluster]:
    """A cluster, and chunks of few messages, so that small topics have many."""
    with kafka_cluster() as cluster, pytest.MonkeyPatch.context() as patch:
        for module in ("partition", "index", "source"):
            patch.setattr(f"exfm_plugins.sources.kafka.{module}.CHUNK", CHUNK)
        for module in ("partition", "source"):
            patch.setattr(f"exfm_plugins.sources.kafka.{module}.BUCKET_US", 3_000_000)
        # Looks often whether the broker is there again after a cut.
        patch.setattr("exfm_plugins.sources.kafka.client._WAIT_S", 0.02)
        yield cluster


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def row(number: int, at: int, **more: Any) -> dict[str, Any]:
    columns = {
        "example_id": number,
        "event_time": at,
        "item": number % 100,
        "country": f"São {number % 3}",
        "tags": list(range(number % 4)),
        "price": number / 8,
        "word": ["a", "b"][: number % 3],
        "click": number % 2,
    }
    return columns | more


def value(number: int, at: int, **more: Any) -> bytes:
    return json.dumps(row(number, at, **more)).encode()


def source(cluster: Cluster, topic: str, **config: Any) -> Kafka:
    return Kafka(Kafka.Config.model_validate(FIELDS | {"bootstrap_servers": cluster.servers, "topic": topic} | config))


def read(stream: exfm.DataSource, window: exfm.sources.Window | None = None) -> pa.Table:
    """The rows of a window as the core puts them in order; by default, of the whole stream."""
    batches = ordered_batches(stream, window)
    return pa.Table.from_batches(batches).combine_chunks() if batches else pa.table({"example_id": pa.array([])})


def ids(stream: exfm.DataSource, start_ms: int = 0, end_ms: int = 10**9) -> list[int]:
    return list(read(stream, exfm.sources.Window(0, start_ms * US, end_ms * US))["example_id"].to_pylist())


def end_ms(stream: exfm.DataSource) -> int:
    return stream.time_range().end_us // US


AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Impression",
    "fields": [
        {"name": "unused", "type": {"type": "map", "values": "string"}},
        {"name": "example_id", "type": "long"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "item", "type": "int"},
        {"name": "country", "type": ["null", {"type": "enum", "name": "Land", "symbols": ["A", "B"]}]},
        {"name": "tags", "type": {"type": "array", "items": "long"}},
        {"name": "price", "type": "double"},
        {"name": "word", "type": {"type": "array", "items": "string"}},
        {"name": "click", "type": ["null", "int"]},
    ],
}
AS_AVRO: dict[str, Any] = {"format": "avro", "avro_schema": AVRO, "time_unit": "timestamp", "strings": []}


def avro(number: int, at: int, **more: Any) -> bytes:
    import fastavro

    record = row(number, at, country=[None, "A", "B"][number % 3], unused={"a": "b"}) | more
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(AVRO), record)
    return stream.getvalue()


def checked(stream: Kafka, on_bad_row: Literal["error", "skip"]) -> tuple[list[int], dict[str, dict[str, int]]]:
    """Example ids of the good rows, and the rows left out, by column and reason."""
    config = StreamConfig.model_construct(chunk_rows=64, on_bad_row=on_bad_row)  # type: ignore[call-arg]
    reader = ChunkReader(stream, stream.schema(), config, {}, exfm.sources.Shard())
    window = exfm.sources.Window(0, 1_000_000, 10**9)
    return [id for chunk in reader.read(window) for id in chunk.batch.example_id.tolist()], reader.skipped
