"""A Kafka cluster for tests: the mock that librdkafka brings along, in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ALL_BROKERS = -1

# Result and arguments of each function of librdkafka that is called.
_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "rd_kafka_new": (_POINTER, [_INT, _POINTER, _TEXT, ctypes.c_size_t]),
    "rd_kafka_conf_new": (_POINTER, []),
    "rd_kafka_conf_set": (_INT, [_POINTER, _TEXT, _TEXT, _TEXT, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [_POINTER]),
    "rd_kafka_mock_cluster_new": (_POINTER, [_POINTER, _INT]),
    "rd_kafka_mock_cluster_destroy": (None, [_POINTER]),
    "rd_kafka_mock_cluster_bootstraps": (_TEXT, [_POINTER]),
    "rd_kafka_mock_topic_create": (_INT, [_POINTER, _TEXT, _INT, _INT]),
    "rd_kafka_mock_topic_delete": (_INT, [_POINTER, _TEXT]),
    "rd_kafka_mock_partition_delete_records": (_INT, [_POINTER, _TEXT, ctypes.c_int32, ctypes.c_int64]),
    "rd_kafka_mock_broker_set_down": (_INT, [_POINTER, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_up": (_INT, [_POINTER, ctypes.c_int32]),
}


class Cluster:
    """A broker that keeps messages in memory, and a producer for it."""

    def __init__(self) -> None:
        kafka = pytest.importorskip("confluent_kafka", reason="needs the package confluent-kafka")
        self._library = _library(Path(kafka.__file__).parent)
        error = ctypes.create_string_buffer(512)
        configuration = self._library.rd_kafka_conf_new()
        # The client that holds the cluster connects to nothing; without a log it does not say so.
        self._library.rd_kafka_conf_set(configuration, b"log_level", b"0", error, 512)
        self._client = self._library.rd_kafka_new(0, configuration, error, 512)
        assert self._client, error.value
        self._mock = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        self.servers: str = self._library.rd_kafka_mock_cluster_bootstraps(self._mock).decode()
        settings = {"bootstrap.servers": self.servers, "linger.ms": 0, "log_level": 0}
        self._new_producer = lambda: kafka.Producer(settings)
        self._producer: Any = self._new_producer()
        self._topics = 0

    def close(self) -> None:
        self._producer.flush(5)
        self._library.rd_kafka_mock_cluster_destroy(self._mock)
        self._library.rd_kafka_destroy(self._client)

    def topic(self, partitions: int, name: str = "") -> str:
        """Makes a topic, with a new name by default."""
        self._topics += 1
        name = name or f"log-{self._topics}"
        assert self._library.rd_kafka_mock_topic_create(self._mock, name.encode(), partitions, 1) == 0
        return name

    def delete(self, topic: str) -> None:
        assert self._library.rd_kafka_mock_topic_delete(self._mock, topic.encode()) == 0
        # The producer remembers the partitions.
        self._producer = self._new_producer()

    def append(self, topic: str, messages: Iterable[tuple[int, bytes | None, int]]) -> None:
        """Appends messages: partition, value, and timestamp in milliseconds."""
        for partition, value, timestamp in messages:
            self._producer.produce(topic, value, partition=partition, timestamp=timestamp)
        assert self._producer.flush(20) == 0

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        """Removes messages as retention does; whole batches of them, as the producer has sent them."""
        if not hasattr(self._library, "rd_kafka_mock_partition_delete_records"):
            pytest.skip("needs a newer librdkafka")
        code = self._library.rd_kafka_mock_partition_delete_records(self._mock, topic.encode(), partition, offset)
        assert code == 0

    def down(self) -> None:
        """Cuts all connections, and refuses others."""
        self._library.rd_kafka_mock_broker_set_down(self._mock, ALL_BROKERS)

    def up(self) -> None:
        self._library.rd_kafka_mock_broker_set_up(self._mock, ALL_BROKERS)


@contextmanager
def kafka_cluster() -> Iterator[Cluster]:
    """Starts a cluster, and stops it at the end. Skips the test where there is no client."""
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


def _library(package: Path) -> Any:
    """The librdkafka that the package has loaded."""
    # Wheels for Linux and macOS have it beside or inside of the package.
    folders = (package.parent / "confluent_kafka.libs", package / ".dylibs")
    files = [file for folder in folders for file in sorted(folder.glob("librdkafka*"))]
    if not files:
        pytest.skip("needs confluent-kafka from a wheel, which brings librdkafka along")
    library = ctypes.CDLL(str(files[0]))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is not None:
            function.restype, function.argtypes = result, arguments
    return library
