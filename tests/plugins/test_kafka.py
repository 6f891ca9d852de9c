"""`kafka` against the broker of librdkafka: order, watermark, retention, bad messages and cuts."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm
import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.kafka.source import Kafka
from exfm_plugins.sources.parquet.source import Parquet
from tests.plugins.kafka_broker import Cluster
from tests.plugins.kafka_logs import (
    AS_AVRO,
    CHUNK,
    FEATURES,
    FIELDS,
    OLD,
    US,
    avro,
    checked,
    end_ms,
    ids,
    now_ms,
    read,
    row,
    small_cluster,
    source,
    value,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with small_cluster() as cluster:
        yield cluster


class TestKafka(DataSourceTests):
    component = Kafka
    plugin = exfm_plugins.sources
    configs = (
        {**FIELDS, "bootstrap_servers": "set by config()", "topic": "json"},
        {**FIELDS, "bootstrap_servers": "", "topic": "json", "example_ids": "offset", "start": "1970-01-01T00:00:01Z"},
        {**FIELDS, "bootstrap_servers": "", "topic": "avro", **AS_AVRO, "schema_id": 7},
    )
    cluster: Any = None

    @pytest.fixture(autouse=True)
    def _written(self, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls = type(self)
        cls.cluster = cluster
        if cls.folder is None:
            cls.folder = tmp_path_factory.mktemp(cls.__name__)
            self.write(cls.folder)

    def config(self, fields: Any) -> Any:
        where = {"bootstrap_servers": self.cluster.servers, "topic": self._topic(fields["topic"])}
        return super().config(dict(fields) | where)

    def _topic(self, name: str) -> str:
        return f"{name.partition('-')[0]}-{self.folder.name if self.folder else ''}"

    def write(self, folder: Path) -> None:
        for name in ("json", "avro"):
            self.cluster.topic(3, self._topic(name))
        self._append(range(120))

    def grow(self, folder: Path) -> None:
        self._append(range(120, 150))

    def _append(self, numbers: Sequence[int]) -> None:
        for name, write in (("json", value), ("avro", lambda number, at: b"\0\0\0\0\7" + avro(number, at))):
            times = {number: 2000 + number // 3 * 500 - number % 7 * 90 for number in numbers}
            self.cluster.append(self._topic(name), [(n % 3, write(n, at), OLD) for n, at in times.items()])


# ---- the rows of a window ------------------------------------------------------------------------------------------

splits = st.fixed_dictionaries(
    {
        # Few times: ties are common.
        "times": st.lists(st.integers(0, 9), min_size=1, max_size=40),
        "seed": st.integers(0, 999),
        "partitions": st.integers(1, 4),
        "length": st.integers(1, 11),
        "looks": st.booleans(),
    }
)


@settings(max_examples=20)
@given(case=splits)
def test_any_partitioning_has_the_same_rows_as_parquet(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    """Permutations and splits of a log into partitions: the same bits as of the rows in a Parquet file."""
    folder = tmp_path_factory.mktemp("split")
    rows = [row(number, at * 1000) for number, at in enumerate(case["times"])]
    pq.write_table(pa.Table.from_pylist(rows), folder / "whole.parquet")
    shuffle = np.random.default_rng(case["seed"])
    topic = cluster.topic(case["partitions"])
    stream = source(cluster, topic)
    for number in shuffle.permutation(len(rows)).tolist():
        partition = int(shuffle.integers(case["partitions"]))
        cluster.append(topic, [(partition, json.dumps(rows[number]).encode(), OLD)])
        if case["looks"] and shuffle.random() < 0.1:
            stream.time_range()
    config = {"path": str(folder / "whole.parquet"), "time_unit": "ms", "features": FEATURES}
    other = Parquet(Parquet.Config.model_validate({**config, "labels": FIELDS["labels"]}))
    time_range = other.time_range()
    assert stream.time_range() == time_range == source(cluster, topic).time_range()
    for start in range(time_range.start_us, time_range.end_us, case["length"] * 1_000_000):
        window = exfm.sources.Window(0, start, start + case["length"] * 1_000_000)
        # Arrow's readers name the items of lists differently.
        rows_read = read(stream, window)
        assert rows_read.equals(read(other, window).cast(rows_read.schema))
        assert stream.next_event_us(start) == other.next_event_us(start)


def test_examples_without_ids_are_known_by_their_offset(cluster: Cluster) -> None:
    topic = cluster.topic(2)
    cluster.append(topic, [(number % 2, value(number, 1000 + number), OLD) for number in range(40)])
    first, again = (read(source(cluster, topic, example_ids="offset")) for _ in range(2))
    assert first.equals(again) and len(set(first["example_id"].to_pylist())) == 40
    by_place = {(f"{topic}/{n % 2}", n // 2): n for n in range(40)}
    expected = {exfm.sources.place_ids(name, at, 1)[0].as_py(): n for (name, at), n in by_place.items()}
    assert [expected[id] for id in first["example_id"].to_pylist()] == first["item"].to_pylist()


def test_iso_times_and_broken_lines(cluster: Cluster) -> None:
    topic = cluster.topic(1)
    texts = ["1970-01-01T00:00:01.5Z", "1970-01-01T00:00:01Z"]
    spread = [json.dumps(row(number, 0, event_time=text), indent=1).encode() for number, text in enumerate(texts)]
    cluster.append(topic, [(0, text, OLD) for text in spread])
    stream = source(cluster, topic, time_unit="timestamp")
    assert stream.time_range() == exfm.sources.TimeRange(1_000_000, 1_500_001)
    assert read(stream)["example_id"].to_pylist() == [1, 0]


def test_offsets_without_messages_are_passed_over(cluster: Cluster) -> None:
    """A transaction ends with an offset that has no message, also at the end of the partition."""
    import confluent_kafka

    topic = cluster.topic(1)
    settings = {"bootstrap.servers": cluster.servers, "transactional.id": "exfm", "log_level": 0}
    producer = confluent_kafka.Producer(settings)
    producer.init_transactions()
    stream = source(cluster, topic, example_ids="offset")
    for number in range(20):
        producer.begin_transaction()
        producer.produce(topic, value(number, 1000 + number), partition=0, timestamp=OLD)
        producer.commit_transaction()
        if number in (6, 7):  # the end of a chunk, before and behind
            stream.time_range()
    assert [int(unit.version) for unit in stream.parts()] == [14, 30, 38]
    for each in (stream, source(cluster, topic, example_ids="offset")):
        assert each.time_range() == exfm.sources.TimeRange(1_000_000, 1_019_001)
        rows = read(each)
        assert rows["item"].to_pylist() == list(range(20)) and len(set(rows["example_id"].to_pylist())) == 20


# ---- completeness --------------------------------------------------------------------------------------------------


def test_a_partition_that_lags_holds_windows_back(cluster: Cluster) -> None:
    topic, now = cluster.topic(3), now_ms()
    stream = source(cluster, topic, out_of_orderness="0.5s", idle_partition="1h")
    cluster.append(topic, [(0, value(6, 100), now), (0, value(0, 9000), now), (1, value(1, 2000), now)])
    assert end_ms(stream) == 1500, "partition 2, which has no message, is idle"
    cluster.append(topic, [(2, value(2, 1000), now - 7_200_000)])
    assert end_ms(stream) == 1500, "nothing has come into partition 2 for two hours"
    cluster.append(topic, [(1, value(3, 7000), now), (1, value(4, 6600), now)])
    assert end_ms(stream) == 6500
    cluster.append(topic, [(2, value(5, 3000), now)])
    assert end_ms(stream) == 6500, "what was complete stays so"
    assert end_ms(source(cluster, topic, out_of_orderness="0.5s", idle_partition="1h")) == 2500
    assert end_ms(source(cluster, topic, idle_partition="0s")) == 9000, "all are idle: the newest event is the last"
    assert ids(stream, 0, 6500) == [6, 2, 1, 5]


def test_an_event_of_tomorrow_does_not_complete_the_stream(cluster: Cluster) -> None:
    topic, now = cluster.topic(1), now_ms()
    cluster.append(topic, [(0, value(0, now - 5000), now), (0, value(1, now + 86_400_000), now)])
    assert now - 5000 <= end_ms(source(cluster, topic)) <= now_ms()


def test_partitions_are_added(cluster: Cluster) -> None:
    topic = cluster.topic(1)
    before = [(0, value(number, 1000 + number), OLD) for number in range(20)]
    cluster.append(topic, before)
    stream = source(cluster, topic)
    assert end_ms(stream) == 1019 and ids(stream) == list(range(20))
    # The mock adds no partition to a topic: the same topic is made with more.
    cluster.delete(topic)
    cluster.topic(3, topic)
    cluster.append(topic, before)
    cluster.append(topic, [(1 + number % 2, value(number, 1000 + number), OLD) for number in range(20, 60)])
    assert end_ms(stream) == 1059 and ids(stream) == list(range(60))
    assert len({unit.name.partition(",")[0] for unit in stream.parts()}) == 3


def test_processes_read_the_same_messages_while_more_come(cluster: Cluster) -> None:
    topic = cluster.topic(2)
    first, second = source(cluster, topic), source(cluster, topic)
    cluster.append(topic, [(n % 2, value(n, 1000 + n * 100), OLD) for n in range(100)])
    listed = first.parts()
    second.parts()
    late = [(n % 2, value(n, 1000 + (n - 100) * 400), OLD) for n in range(100, 200)]
    cluster.append(topic, late)
    assert second.pin(listed) and not second.pin([*listed, exfm.sources.StreamPart("another", "1", 0, 1)])
    assert second.pin(listed)
    window = exfm.sources.Window(0, 0, 10**9)
    # In the same order of batches too, because of a repeated id the first is read.
    batches = [list(stream.read(window)) for stream in (first, second)]
    assert [batch.to_pylist() for batch in batches[0]] == [batch.to_pylist() for batch in batches[1]]
    assert ids(first) == list(range(100)) == ids(second)
    second.time_range()
    assert len(ids(second)) == 200 and len(second.parts()) > len(listed)


# ---- retention -----------------------------------------------------------------------------------------------------


def test_removed_messages_are_missed(cluster: Cluster) -> None:
    topic = cluster.topic(2)
    for number in range(100):  # each a separate batch, which the broker can remove
        cluster.append(topic, [(number % 2, value(number, 1000 + number), OLD)])
    start = {"start": "1970-01-01T00:00:01Z"}
    live, unset = source(cluster, topic, **start), source(cluster, topic)
    assert unset.time_range().start_us == live.time_range().start_us == 1_000_000
    cluster.remove_before(topic, 1, 20)  # events until 1039
    fresh = source(cluster, topic, **start)
    assert fresh.time_range() == live.time_range() == exfm.sources.TimeRange(1_000_000, 1_099_001 // 1000 * 1000 + 1)
    # Windows are counted as before, and those that have lost rows are not passed over.
    assert live.next_event_us(1_000_000) == fresh.next_event_us(1_000_000) == 1_000_000
    # The chunk that lost messages had events until 1063; a fresh process knows that the first there is is of 1041.
    assert ids(live, 1064, 1100) == list(range(64, 100))
    assert ids(fresh, 1042, 1100) == list(range(42, 100))
    for stream, at in ((live, 1030), (live, 1063), (fresh, 1041)):
        with pytest.raises(
            exfm.components.RowsRemovedError, match=rf"{topic}', partition 1: .* before offset 20, .*set st"
        ):
            ids(stream, at, 1100)
    for stream in (unset, source(cluster, topic)):
        with pytest.raises(ValueError, match=r"partition 1: .*before offset 20; set start, .* to 1970-01-01T00:00:02Z"):
            stream.time_range()


def test_messages_removed_between_look_and_read_are_named(cluster: Cluster) -> None:
    topic = cluster.topic(1)
    for number in range(30):
        cluster.append(topic, [(0, value(number, 1000 + number), OLD)])
    stream = source(cluster, topic)
    stream.time_range()
    cluster.remove_before(topic, 0, 5)
    with pytest.raises(exfm.components.RowsRemovedError, match=r"partition 0: the broker has removed offset 0"):
        ids(stream)


def test_an_emptied_partition_is_said(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    topic = cluster.topic(2)
    cluster.append(topic, [(0, value(0, 1000), OLD), (1, value(1, 1000), OLD)])
    cluster.remove_before(topic, 1, 1)
    stream = source(cluster, topic, start="1970-01-01T00:00:00Z")
    stream.time_range()
    stream.time_range()
    assert caplog.text.count("partition 1: the broker has removed the messages before offset 1") == 1


def test_a_topic_that_is_made_anew_is_an_error(cluster: Cluster) -> None:
    topic = cluster.topic(1)
    cluster.append(topic, [(0, value(number, 1000), OLD) for number in range(3)])
    stream = source(cluster, topic)
    stream.time_range()
    cluster.delete(topic)
    cluster.topic(1, topic)
    with pytest.raises(ValueError, match=r"ends at offset 0, and ended at 3 before\. Was the topic made anew"):
        stream.time_range()


# ---- bad messages --------------------------------------------------------------------------------------------------


BAD = [
    (b"nonsense", "row", ["not a JSON object"]),
    (b'{"item": 1}{"item": 2}', "row", ["several objects"]),
    (b"\xff\xfe", "row", ["not a JSON object"]),
    (b"", "row", ["not a JSON object"]),
    (None, "row", ["no value (a tombstone)"]),
    (value(9, 5000).replace(b'"S', b'"\xff\xfeS'), "row", ["not UTF-8"]),
    (value(9, 5000, item="seven"), "row", ["item", "string"]),
    (value(9, 10**16), "row", ["past the year 9999"]),
    (json.dumps({"item": 5}).encode(), "example_id", ["missing"]),
    (value(9, 0, event_time=None), "event_time", ["missing"]),
]


@pytest.mark.parametrize(("text", "column", "words"), BAD)
def test_bad_messages_are_named_or_skipped(cluster: Cluster, text: bytes | None, column: str, words: list[str]) -> None:
    topic = cluster.topic(2)
    good = [(1, value(number, 4000 + number), OLD) for number in range(20)]
    cluster.append(topic, [*good[:18], (1, text, OLD), *good[18:]])
    stream = source(cluster, topic)
    stream.time_range()
    with pytest.raises(
        exfm.ConfigError, match=rf"^{topic}/1, offsets 16-31 from 1970-01-01T00:00:03Z, row 18: {column}: "
    ) as error:
        checked(stream, "error")
    assert all(word in str(error.value) for word in words), str(error.value)
    passed, skipped = checked(stream, "skip")
    assert passed == list(range(20)) and {name: sum(rows.values()) for name, rows in skipped.items()} == {column: 1}
    # At the time of the message before it, or of its event.
    at = 5000 if text is not None and (b"seven" in text or b"\xfeS" in text) else 4017
    bad = list(stream.read(exfm.sources.Window(0, at * US, at * US + 1)))
    assert bad[0]["exfm.row_number"].to_pylist()[-1] == 18


def test_bad_messages_before_any_time(cluster: Cluster) -> None:
    """They are at the first time that comes, and until then the stream waits, and says why."""
    topic = cluster.topic(1)
    cluster.append(topic, [(0, b"?", OLD)] * (CHUNK + 2))
    stream = source(cluster, topic)
    with pytest.raises(exfm.components.NotYetError, match="no message with an event time: it is not a JSON object"):
        stream.time_range()
    cluster.append(topic, [(0, b"?", OLD), (0, value(0, 3000), OLD), (0, b"?", OLD)])
    for each in (stream, source(cluster, topic)):
        assert each.time_range() == exfm.sources.TimeRange(3_000_000, 3_000_001)
        assert checked(each, "skip") == ([0], {"row": {"it is not a JSON object": CHUNK + 4}})


# ---- cuts ----------------------------------------------------------------------------------------------------------


def test_each_message_is_read_once_through_twenty_cuts(cluster: Cluster) -> None:
    topic = cluster.topic(3)
    shuffle = random.Random(0)
    cluster.append(topic, [(n % 3, value(n, 1000 + n), OLD) for n in range(1200)])
    stream, seen, cuts = source(cluster, topic), list[int](), 0

    def cut() -> None:
        cluster.down()
        threading.Timer(shuffle.uniform(0, 0.02), cluster.up).start()

    cut()
    whole = stream.time_range()
    for batch in stream.read(exfm.sources.Window(0, whole.start_us, whole.end_us)):
        seen += batch["example_id"].to_pylist()
        if cuts < 20 and shuffle.random() < 0.5:
            cut()
            cuts += 1
    cluster.up()
    assert cuts == 20 and sorted(seen) == list(range(1200))


def test_brokers_that_do_not_answer_are_named(cluster: Cluster) -> None:
    topic = cluster.topic(1)
    cluster.append(topic, [(0, value(0, 1000), OLD)])
    stream = source(cluster, topic, timeout="0.2s")
    stream.time_range()
    cluster.down()
    try:
        with pytest.raises(exfm.components.NotYetError, match=r"nothing has come from offset 0 on for 0\.2 seconds"):
            ids(stream)
        with pytest.raises(exfm.components.NotYetError, match="bootstrap_servers: the brokers do not answer"):
            stream.time_range()
    finally:
        cluster.up()
    stream = source(cluster, topic)
    stream.time_range()
    assert ids(stream) == [0]
    with pytest.raises(exfm.components.NotYetError, match=r"no topic '.*x'.*Did you mean"):
        source(cluster, f"{topic}x").time_range()
    with pytest.raises(exfm.components.NotYetError, match="no message with an event time"):
        source(cluster, cluster.topic(1)).time_range()
    waiting = source(cluster, cluster.topic(1), start="2026-01-01T00:00:00Z").time_range()
    assert waiting.start_us == waiting.end_us
    early = source(cluster, topic, start="2026-01-01T00:00:00Z")
    assert early.time_range() == waiting and early.next_event_us(0) is None and not early.parts()
