"""Jobs on a Kafka topic, and the settings and schemas of `kafka`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import exfm
from exfm.storage.late_log import LateLog
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from exfm_plugins.sources.kafka.source import Kafka
from tests.plugins.kafka_broker import Cluster
from tests.plugins.kafka_logs import (
    AS_AVRO,
    AVRO,
    FIELDS,
    OLD,
    avro,
    checked,
    now_ms,
    read,
    row,
    small_cluster,
    source,
    value,
)
from tests.plugins.sources import EXAMPLES


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with small_cluster() as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\0\0\0\0\7" + avro(9, 4000)[:-1], "not a record of avro_schema"),
        (b"\0\0\0\0\7" + avro(9, 4000) + b"x", "longer than a record"),
        (b"\0\0\0\0\6" + avro(9, 4000), "Confluent's header"),
        (avro(9, 4000), "Confluent's header"),
        (b"", "Confluent's header"),
    ],
)
def test_bad_records_are_named(cluster: Cluster, text: bytes, words: str) -> None:
    topic = cluster.topic(1)
    good = [(0, b"\0\0\0\0\7" + avro(number, 4000 + number), OLD) for number in range(3)]
    cluster.append(topic, [*good, (0, text, OLD)])
    stream = source(cluster, topic, **AS_AVRO, schema_id=7)
    with pytest.raises(
        exfm.ConfigError, match=rf"^{topic}/0, offsets 0-15 from 1970-01-01T00:00:03Z, row 3: row: .*{words}"
    ):
        checked(stream, "error")
    assert checked(stream, "skip")[0] == [0, 1, 2]


def test_avro_records_are_as_json_objects(cluster: Cluster) -> None:
    written, records = cluster.topic(1), cluster.topic(1)
    countries = [None, "A", "B"]
    cluster.append(written, [(0, value(n, 1000 + n, country=countries[n % 3]), OLD) for n in range(30)])
    cluster.append(records, [(0, avro(n, 1000 + n), OLD) for n in range(30)])
    assert read(source(cluster, records, **AS_AVRO)).equals(read(source(cluster, written)))


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"format": "avro"}, "avro_schema: needed with format: avro"),
        ({"avro_schema": AVRO}, "avro_schema: not used with format: json"),
        ({"schema_id": 1}, "schema_id: not used with format: json"),
        ({**AS_AVRO, "strings": ["item"]}, "strings: not used with format: avro"),
        ({"options": {"bootstrap.servers": "a"}}, "bootstrap.servers is set by exfm"),
        ({"options": {"plugin.library.paths": "/tmp/x.so"}}, "makes the client run other programs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Kafka.Config.model_validate(FIELDS | {"bootstrap_servers": "", "topic": "a"} | config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"strings": ["wort"]}, "strings: the schema reads no ids from a column 'wort'. Did you mean 'word'"),
        ({**AS_AVRO, "example_id": "exmple_id"}, "it has no field 'exmple_id'. Did you mean 'example_id'"),
        ({**AS_AVRO, "event_time": "unused"}, "field 'unused' is .*map.*, which is no column. Allowed: int, long"),
        ({**AS_AVRO, "avro_schema": {"type": "long"}}, "it must be that of a record"),
        ({**AS_AVRO, "avro_schema": {**AVRO, "fields": [{"name": "a", "type": "lang"}]}}, "has no field 'example_id'"),
    ],
)
def test_schemas_that_do_not_fit_are_explained(config: dict[str, Any], words: str) -> None:
    config = FIELDS | {"bootstrap_servers": "", "topic": "a"} | config
    with pytest.raises(ValueError, match=words):
        Kafka(Kafka.Config.model_validate(config)).schema()


def test_secrets_in_a_file_are_used_and_not_said(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text("# to the broker\nsasl.password = hunter2\nsecurity.protocol=hunter2\n")
    with pytest.raises(ValueError, match=r"options: .*\*\*\*.*security.protocol") as error:
        source(cluster, "a", options_file=str(file)).time_range()
    assert "hunter2" not in str(error.value)
    file.write_text("hunter2")
    with pytest.raises(ValueError, match="line 1 is not of the form name=value") as error:
        source(cluster, "a", options_file=str(file)).time_range()
    assert "hunter2" not in str(error.value)
    with pytest.raises(ValueError, match="gone cannot be read: FileNotFoundError"):
        source(cluster, "a", options_file=str(tmp_path / "gone")).time_range()
    with pytest.raises(ValueError, match="No such configuration property"):
        source(cluster, "a", options={"sasl.pasword": "x"}).time_range()


def test_a_missing_package_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.setitem(sys.modules, "fastavro", None)
    with pytest.raises(ValueError, match=r"needs the package confluent-kafka: pip install 'exfm\[kafka\]'"):
        source(cluster, "a").time_range()
    with pytest.raises(ValueError, match=r"needs the package fastavro: pip install 'exfm\[kafka\]'"):
        source(cluster, "a", **AS_AVRO).schema()


# ---- jobs ----------------------------------------------------------------------------------------------------------

EXPERIMENT = """
name: live
run_dir: {run_dir}
stream:
  window: 10s
  chunk_rows: 64
  on_bad_row: {on_bad_row}
  source: {source}
models:
  fm: {{backbone: {{name: dlrm}}, embedding_dim: 4, batch_size: 32}}
"""
JOB = {"features": [{"name": "item", "kind": "categorical", "rows": 16}], "labels": [{"name": "click"}]}


def write_job(folder: Path, name: str, source: dict[str, Any], on_bad_row: str = "error") -> str:
    text = EXPERIMENT.format(run_dir=folder / name, on_bad_row=on_bad_row, source=json.dumps(JOB | source))
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


def kafka_job(cluster: Cluster, topic: str, **more: Any) -> dict[str, Any]:
    where = {"name": "kafka", "bootstrap_servers": cluster.servers, "topic": topic}
    return where | {"options": FIELDS["options"], "idle_partition": "1h", "out_of_orderness": "2s"} | more


def loop(path: str, *overrides: str) -> StreamLoop:
    experiment = exfm.load_experiment(path, list(overrides))
    return StreamLoop(experiment, Store(experiment.run_dir), experiment.config.parallel.build(), lambda _: None)


def commits(folder: Path, name: str) -> list[Any]:
    return list(Store(str(folder / name)).log.commits("train", "fm"))


def test_a_job_follows_a_topic_as_if_it_were_a_file(cluster: Cluster, tmp_path: Path) -> None:
    """A lagging partition, a new partition, cuts and new processes: the bits of a run on the rows in a Parquet file."""
    topic, now = cluster.topic(2), now_ms()
    rows = [row(number, 1_000_000 + number * 100 - number % 5 * 300) for number in range(250)]
    log: list[tuple[int, bytes | None, int]] = []

    def feed(numbers: Sequence[int], partitions: Sequence[int]) -> None:
        messages = [(partitions[n % len(partitions)], json.dumps(rows[n]).encode(), now) for n in numbers]
        log.extend(messages)
        cluster.append(topic, messages)

    path = write_job(tmp_path, "live", kafka_job(cluster, topic))
    feed(range(110), (0, 1))
    following = loop(path)
    assert following.advance(complete_windows_only=True) == 1, "998 s to 1000 s"
    feed(range(110, 170, 2), (0,))
    assert following.advance(complete_windows_only=True) == 0, "partition 1 lags"
    cluster.down()
    threading.Timer(0.1, cluster.up).start()
    feed(range(111, 130, 2), (1,))
    assert following.advance(complete_windows_only=True) == 1, "1000 s to 1010 s is complete at 1012 s"
    before = list(log)
    cluster.delete(topic)
    cluster.topic(3, topic)
    cluster.append(topic, before)
    feed(range(131, 170, 2), (1,))
    feed(range(170, 250), (0, 1, 2))
    again = loop(path)
    assert again.advance(complete_windows_only=True) == 1
    assert loop(path).advance() == 1, "the last window as it stands"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    once = write_job(tmp_path, "once", {"name": "parquet", "path": str(tmp_path / "rows.parquet"), "time_unit": "ms"})
    assert loop(once).advance() == 4
    runs = [commits(tmp_path, name) for name in ("live", "once")]
    counts = [[commit.counters["examples"] for commit in run] for run in runs]
    assert counts[0] == counts[1] and sum(counts[0]) == 250
    digests = [[{role: file.xxh3 for role, file in commit.files.items()} for commit in run] for run in runs]
    assert digests[0] == digests[1]


def test_rows_that_come_late_are_counted_and_set_aside(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of removed windows are not, which is no error of the job."""
    topic, now = cluster.topic(2), now_ms()
    for first in range(0, 400, 4):  # batches of the producer, which the broker removes as a whole
        cluster.append(topic, [(n % 2, value(n, 1_000_000 + n * 100), now) for n in range(first, first + 4)])
    path = write_job(tmp_path, "late", kafka_job(cluster, topic, start="1970-01-01T00:16:40Z"), "skip")
    following = loop(path)
    assert following.advance(complete_windows_only=True) == 3
    late = [(1, value(1000, 1_005_000), now), (0, b"poison", now), (1, None, now), (0, value(1001, 1_025_000), now)]
    cluster.append(topic, late)
    following.advance(complete_windows_only=True)
    log = LateLog(Store(str(tmp_path / "late")).workspace)
    late_rows = {each.window.index: each for each in log.all("fm") if each.count}
    aside = {index: log.read_aside(each)["example_id"].to_pylist() for index, each in late_rows.items()}
    assert aside == {0: [1000], 2: [1001]} and [each.count for each in late_rows.values()] == [1, 1]
    cluster.remove_before(topic, 1, 60)
    cluster.append(topic, [(1, value(1002, 1_006_000), now)])
    assert loop(path).advance(complete_windows_only=True) == 0
    assert "rows that have come late for window 1970-01-01T00:16:40Z, and others, are not counted" in caplog.text
    cluster.append(topic, [(n % 2, value(n, 1_000_000 + n * 100), now) for n in range(400, 540)])
    assert loop(path).advance(complete_windows_only=True) == 2
    assert [commit.counters["examples"] for commit in commits(tmp_path, "late")] == [100] * 5


def test_a_job_that_lags_behind_retention_stops_and_can_go_on(cluster: Cluster, tmp_path: Path) -> None:
    topic, now = cluster.topic(2), now_ms()
    for first in range(0, 400, 20):
        cluster.append(topic, [(n % 2, value(n, 1_000_000 + n * 100), now) for n in range(first, first + 20)])
    path = write_job(tmp_path, "lags", kafka_job(cluster, topic, start="1970-01-01T00:16:40Z"))
    cluster.remove_before(topic, 0, 100)  # events until 1_019_800
    with pytest.raises(exfm.ConfigError, match=r"partition 0: .* before offset 100, .*; to go on .* set stream.start"):
        loop(path).advance(complete_windows_only=True)
    # The first event there is, of 1_020_000, less than the disorder of 2 s after those that were removed.
    assert loop(path, "stream.start=1970-01-01T00:17:10Z").advance() == 1
    assert [commit.counters["examples"] for commit in commits(tmp_path, "lags")] == [100]


def test_no_file_of_a_run_has_a_secret(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = cluster.topic(1)
    cluster.append(topic, [(0, value(n, 1_000_000 + n * 100), OLD) for n in range(40)])
    monkeypatch.setenv("EXFM_TEST_PASSWORD", "hunter2-of-kafka")
    (tmp_path / "secret.properties").write_text("sasl.username=trainer\nssl.key.password=hunter3-of-kafka\n")
    options = FIELDS["options"] | {"sasl.password": "${oc.env:EXFM_TEST_PASSWORD}", "ssl.keystore.password": "hunter4"}
    job = kafka_job(cluster, topic, options=options, options_file=str(tmp_path / "secret.properties"))
    exfm.run(exfm.load_experiment(write_job(tmp_path, "run", job), ["evaluation.replicates=100"]))
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any(b"${oc.env:EXFM_TEST_PASSWORD}" in file.read_bytes() for file in files)
    assert not [file for file in files if b"hunter" in file.read_bytes()]


def test_the_example_is_valid(tmp_path: Path) -> None:
    experiment = exfm.load_experiment(str(EXAMPLES / "kafka.yaml"))
    assert isinstance(experiment.source, Kafka) and experiment.source.schema().labels
