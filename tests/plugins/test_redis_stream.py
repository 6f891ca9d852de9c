"""`redis_stream` against a real Redis: order, lateness, watermark, trimming, and a job that follows the stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
import exfm_plugins.sources
from exfm.config.experiment import StreamConfig
from exfm.data.stream import ChunkReader
from exfm.supervision.store import Store
from exfm.testing import DataSourceTests
from exfm.training.loop import StreamLoop
from exfm_plugins.sources.redis_stream.source import RedisStream
from tests.plugins.brokers import redis_server

FEATURES: list[dict[str, Any]] = [
    {"name": "item", "kind": "categorical", "rows": 100},
    {"name": "tags", "kind": "multi_valued", "rows": 50},
    {"name": "price", "kind": "dense"},
    {"name": "history", "kind": "sequence", "max_length": 3, "fields": [{"name": "word", "rows": 9}]},
]
LABELS: list[dict[str, Any]] = [{"name": "click"}]
FIELDS: dict[str, Any] = {"features": FEATURES, "labels": LABELS, "strings": ["word"], "stream": "log"}
MS = 1000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def log(url: str) -> Iterator[Any]:
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushall()
        yield client


def row(number: int, **more: Any) -> dict[str, Any]:
    words = ["a", "b"][: number % 3]
    return {"example_id": number, "item": number, "tags": [1], "price": 0.5, "word": words, "click": number % 2} | more


def append(client: Any, number: int, at_ms: int, key: str = "log", **more: Any) -> None:
    """Appends a row as if it were ``at_ms`` now."""
    client.xadd(key, {"row": json.dumps(row(number, **more))}, id=f"{at_ms}-*")


def source(url: str, **config: Any) -> RedisStream:
    return RedisStream(RedisStream.Config.model_validate(FIELDS | {"url": url} | config))


def read(of: RedisStream, start_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """Example id and time in milliseconds of a window's rows."""
    found: list[tuple[int, int]] = []
    for batch in of.read(exfm.sources.Window(0, start_ms * MS, end_ms * MS)):
        times = batch["event_time"].cast(pa.int64()).to_pylist()
        found += zip(batch["example_id"].to_pylist(), [time // MS for time in times], strict=True)
    return found


class TestRedisStream(DataSourceTests):
    component = RedisStream
    plugin = exfm_plugins.sources
    complete = False
    configs = (
        {**FIELDS, "url": "set by config()", "stream": "appended", "batch_rows": 7},
        {**FIELDS, "url": "set by config()", "stream": "late", "batch_rows": 7, "lateness": "2s"},
        {**FIELDS, "url": "set by config()", "stream": "late", "lateness": "2s", "start": "1970-01-01T00:16:30Z"},
    )
    broker = ""

    @pytest.fixture(autouse=True)
    def _filled(self, url: str, log: Any) -> None:
        type(self).broker = url
        for number in range(60):
            at = 1_000_000 + number // 2 * 500
            append(log, number, at, "appended")
            append(log, number, at, "late", event_time=at - (number * 7919) % 2000 + 200)
        for key in ("appended", "late"):
            append(log, 60, 1_060_000, key, event_time=1_060_000)

    def config(self, fields: Any) -> Any:
        return super().config(dict(fields) | {"url": self.broker})


def test_rows_come_in_the_order_of_their_entries(url: str, log: Any) -> None:
    for number, at in enumerate([5000, 5000, 5001, 9000]):
        append(log, number, at)
    of = source(url, batch_rows=1)
    assert of.time_range() == exfm.sources.TimeRange(5_000_000, 9_000_000)
    assert read(of, 5000, 10_000) == [(0, 5000), (1, 5000), (2, 5001), (3, 9000)]
    assert read(of, 5001, 9000) == [(2, 5001)]
    [batch] = source(url).read(exfm.sources.Window(0, 9_000_000, 9_000_001))
    assert exfm.sources.Origin.from_batch(batch) == exfm.sources.Origin("log from entry 9000-0", 0)
    assert batch.to_pylist()[0]["word"] == []


@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 5)), min_size=1, max_size=30),
    page=st.integers(1, 9),
    length=st.integers(1, 12),
    known=st.integers(0, 30),
)
def test_late_events_against_a_reference(
    url: str, log: Any, steps: list[tuple[int, int]], page: int, length: int, known: int
) -> None:
    """Events up to 3 ms late are in order; later ones stand where the stream has got to; nothing changes afterwards."""
    log.flushall()
    reference: list[tuple[int, int, int]] = []
    at, early = 1000, []
    of = source(url, lateness="0.003s", batch_rows=page)
    for number, (step, late) in enumerate(steps):
        at += step
        append(log, number, at, event_time=at - late)
        reference.append((max(at - late, at - 3), number, at - late))
        if number == known:
            done_ms = of.time_range().end_us // MS
            early = read(of, 0, done_ms)
    rows = [(number, time) for _, number, time in sorted(reference, key=lambda one: one[:2])]
    assert read(of, 0, 2000) == rows
    assert rows[: len(early)] == early, "what was complete has changed"
    assert of.time_range() == exfm.sources.TimeRange(
        (1000 + steps[0][0] - 3) * MS, max(at - 3, 1000 + steps[0][0] - 3) * MS
    )
    for begin in range(990, 1100):
        following = of.next_event_us(begin * MS)
        exact = min((time for time, *_ in reference if time >= begin), default=None)
        assert exact is None or (following is not None and begin <= following // MS <= exact)
    assert of.next_event_us((at + 4) * MS) is None
    pieces = [piece for start in range(990, 1100, length) for piece in read(of, start, start + length)]
    assert pieces == rows


def test_stretches_without_entries_are_known(url: str, log: Any) -> None:
    for number, at in enumerate([5_000, 900_000]):
        append(log, number, at, event_time=at)
    for lateness in (0, 2_000):
        of = source(url, lateness=f"{lateness / 1000}s")
        assert of.next_event_us((5_001 + lateness) * MS) == (900_000 - lateness) * MS
        assert of.next_event_us((900_001 + lateness) * MS) is None


EXPERIMENT = """
name: live
run_dir: {run_dir}
stream:
  window: 10s
  chunk_rows: 64
  on_bad_row: {on_bad_row}
  source:
    name: redis_stream
    url: {url}
    stream: log
    lateness: 2s
    features:
      - {{name: item, kind: categorical, rows: 16}}
    labels:
      - {{name: click}}
models:
  fm: {{backbone: {{name: dlrm}}, embedding_dim: 4, batch_size: 32}}
"""


def test_a_job_follows_the_stream(url: str, log: Any, tmp_path: Path) -> None:
    """Windows are done once the watermark has passed them; a new process goes on; one run at the end equals it."""
    (tmp_path / "live.yaml").write_text(EXPERIMENT.format(run_dir=tmp_path / "run", url=url, on_bad_row="error"))
    (tmp_path / "once.yaml").write_text(EXPERIMENT.format(run_dir=tmp_path / "once", url=url, on_bad_row="error"))

    def loop(name: str = "live") -> StreamLoop:
        experiment = exfm.load_experiment(str(tmp_path / f"{name}.yaml"))
        return StreamLoop(experiment, Store(experiment.run_dir), experiment.config.parallel.build(), lambda _: None)

    def feed(first: int, last: int) -> None:
        for number in range(first, last):
            append(log, number, 1_000_000 + number * 100, event_time=1_000_000 + number * 100 - number % 5 * 300)

    feed(0, 110)
    following = loop()
    assert following.advance(complete_windows_only=True) == 1, "998 s to 1000 s"
    assert following.advance(complete_windows_only=True) == 0
    feed(110, 125)
    assert following.advance(complete_windows_only=True) == 1, "1000 s to 1010 s is complete at 1012 s"
    feed(125, 250)
    again = loop()
    assert again.advance(complete_windows_only=True) == 1
    assert again.advance() == 1, "the last window as it stands"
    assert loop("once").advance() == 4
    commits = [Store(str(tmp_path / name)).log.commits("train", "fm") for name in ("run", "once")]
    times = [number * 100 - number % 5 * 300 for number in range(250)]
    rows = [sum(start <= time < start + 10_000 for time in times) for start in (-10_000, 0, 10_000, 20_000)]
    assert [[one.counters["examples"] for one in run] for run in commits] == [rows] * 2
    digests = [[{role: file.xxh3 for role, file in one.files.items()} for one in run] for run in commits]
    assert digests[0] == digests[1]


def test_too_late_is_a_bad_row(url: str, log: Any, tmp_path: Path) -> None:
    for number in range(50):
        append(log, number, 1_000_000 + number * 100, event_time=1_000_000 + number * 100)
    append(log, 50, 1_006_000, event_time=1_000_500)
    (tmp_path / "stop.yaml").write_text(EXPERIMENT.format(run_dir=tmp_path / "stop", url=url, on_bad_row="error"))
    with pytest.raises(exfm.ConfigError, match=r"log from entry .*event_time: time goes backwards"):
        exfm.run(exfm.load_experiment(str(tmp_path / "stop.yaml")))
    (tmp_path / "skip.yaml").write_text(EXPERIMENT.format(run_dir=tmp_path / "skip", url=url, on_bad_row="skip"))
    results = exfm.run(exfm.load_experiment(str(tmp_path / "skip.yaml")))
    assert (results["models"]["fm"]["examples"], results["data"]["skipped_rows"]) == (50, 1)


def test_what_is_trimmed_is_missed(url: str, log: Any) -> None:
    for number in range(10):
        append(log, number, 1000 + number)
    of = source(url, start="1970-01-01T00:00:01Z")
    assert len(read(of, 1003, 1008)) == 5
    log.xtrim("log", maxlen=6, approximate=False)
    assert of.time_range().start_us == 1_000_000
    assert [number for number, _ in read(of, 1004, 1100)] == [4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"log' has lost entries of the window 1970-01-01T00:00:01Z"):
        read(of, 1003, 1008)
    with pytest.raises(ValueError, match="lost its oldest entries; set start"):
        source(url).time_range()


def checked(of: RedisStream, on_bad_row: Literal["error", "skip"]) -> tuple[list[int], dict[str, dict[str, int]]]:
    """Example ids of the good rows, and what is left out."""
    config = StreamConfig.model_construct(chunk_rows=64, on_bad_row=on_bad_row)  # type: ignore[call-arg]
    reader = ChunkReader(of, of.schema(), config, {}, exfm.sources.Shard())
    ids = [id for chunk in reader.read(exfm.sources.Window(0, 0, 10**9)) for id in chunk.batch.example_id.tolist()]
    return ids, reader.skipped


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"row": "nonsense"}, ["not a JSON object"]),
        ({"row": '{"item": "seven"}'}, ["item", "string"]),
        ({"row": '{"item": 1}{"item": 2}'}, ["several objects"]),
        ({"row": '{"item": 1'}, ["not a row"]),
        ({"row": json.dumps(row(9, click=True))}, ["click", "boolean"]),
        ({"row": json.dumps(row(9, item=2**63 + 5))}, ["couldn't parse"]),
        ({"row": json.dumps(row(9, event_time=5000))}, ["event_time lies after the time of the entry"]),
        ({"line": "{}"}, ["no field 'row'"]),
    ],
)
def test_entries_without_a_row_are_named_or_skipped(
    url: str, log: Any, fields: dict[str, str], words: list[str]
) -> None:
    """One bad entry does not stop a job that skips: it would meet it again at every start."""
    for number in range(5):
        append(log, number, number + 1, event_time=number + 1)
    log.xadd("log", fields, id="7-0")
    append(log, 5, 8, event_time=8)
    of = source(url, lateness="1s")
    with pytest.raises(exfm.ConfigError, match=r"^log from entry 7-0, row 0: row: ") as error:
        checked(of, "error")
    assert all(word in str(error.value) for word in words), str(error.value)
    ids, skipped = checked(of, "skip")
    assert ids == [0, 1, 2, 3, 4, 5]
    assert list(skipped) == ["row"]
    assert list(skipped["row"].values()) == [1]


def test_fewer_columns_are_read_where_fewer_are_asked_for(url: str, log: Any) -> None:
    append(log, 0, 5000)
    of = source(url)
    item = of.schema().select(("item",)).model_copy(update={"labels": ()})
    [batch] = of.select(item).read(exfm.sources.Window(0, 0, 10**9))
    assert {"example_id", "event_time", "item"} == set(batch.schema.names) - {"exfm.bad_row"}


def test_a_wrong_unit_is_not_skipped_row_by_row(url: str, log: Any) -> None:
    for number in range(450):
        append(log, number, 100_000 + number, event_time=100_000 + number)
    with pytest.raises(exfm.ConfigError, match=r"of \d+ rows were left out, .*is time_unit s right\?"):
        checked(source(url, lateness="1s", time_unit="s"), "skip")


def test_wrong_brokers_and_schemas_are_explained(url: str, log: Any) -> None:
    with pytest.raises(ValueError, match="'log' holds no entry yet; set start"):
        source(url).time_range()
    waiting = source(url, start="2026-01-01T00:00:00Z").time_range()
    assert waiting.start_us == waiting.end_us
    log.set("word", "no stream")
    with pytest.raises(ValueError, match="'word' cannot be read: WRONGTYPE"):
        source(url, stream="word").time_range()
    with pytest.raises(ValueError, match=r"cannot be read: .*refused"):
        source("redis://127.0.0.1:1/0").time_range()
    with pytest.raises(ValueError, match="strings: the schema reads no ids from a column 'wort'"):
        source(url, strings=["wort"]).schema()
