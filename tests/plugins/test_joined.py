"""`joined`: impressions with their labels, features and histories, as a join in plain Python gives them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import exfm
import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm.testing.rows import fill_folder
from exfm_plugins.sources.joined.source import Joined
from tests.plugins.joined_logs import FIELDS, MINUTE, WITHIN, Logs, Row, joined_rows

pytest.importorskip("duckdb", reason="needs the package duckdb")

UNTIL = {"complete_until": "1970-01-01T01:30:00Z"}
SMALL: dict[str, Any] = {
    "labels_from": {"click": FIELDS["labels_from"]["click"]},
    "labels": [{"name": "click", "delay": "5m"}, {"name": "shown"}],
    "as_of": {},
    "features": [feature for feature in FIELDS["features"] if feature["name"] != "country"],
}


def source(folder: Any, **config: Any) -> Joined:
    return Joined(Joined.Config.model_validate(fill_folder(FIELDS | config, folder)))


def read(stream: exfm.DataSource, *cuts: int) -> list[Row]:
    """The rows of the stream in order, with times in microseconds, read in windows that are cut at some times."""
    span, schema, rows = stream.time_range(), stream.schema(), list[Row]()
    for first, last in pairwise([span.start_us, *cuts, span.end_us]):
        for batch in stream.read(exfm.sources.Window(0, first, last)):
            for name in ("recent_times", schema.event_time):
                if name in batch.schema.names:
                    kind = pa.list_(pa.int64()) if name == "recent_times" else pa.int64()
                    batch = batch.set_column(batch.schema.names.index(name), name, batch.column(name).cast(kind))
            rows += batch.to_pylist()
    for row in rows:
        row.pop("exfm.row_number", None)
    return sorted(rows, key=lambda row: (row[schema.event_time], row[schema.example_id]))


class TestJoined(DataSourceTests):
    component = Joined
    plugin = exfm_plugins.sources
    # Few joins, because the kit reads the stream dozens of times.
    configs = (FIELDS | {"batch_rows": 3, **SMALL},)
    repeats = True

    def write(self, folder: Path) -> None:
        Logs.random(1, impressions=90, events=12).write(folder, group_rows=6)

    def grow(self, folder: Path) -> None:
        """Appends impressions after the last, and events after the last event of their logs."""
        logs = Logs.random(2, impressions=20, events=10)
        for log, minutes in ((logs.impressions, 61), (logs.clicks, 100)):
            for number, row in enumerate(log):
                row["id"] += 1000
                row["at"] = (minutes + number) * MINUTE
        logs.write(folder, first_file=1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), impressions=st.integers(1, 40), events=st.integers(0, 60), cut=st.integers(1, 50))
def test_rows_are_those_of_a_plain_join(
    tmp_path_factory: pytest.TempPathFactory, seed: int, impressions: int, events: int, cut: int
) -> None:
    logs, folder = Logs.random(seed, impressions, events), tmp_path_factory.mktemp("logs")
    logs.write(folder, seed, files=1 + seed % 3, group_rows=1 + seed % 50)
    stream = source(folder, batch_rows=3 + seed % 20)
    span = stream.time_range()
    assert read(stream, span.start_us + (span.end_us - span.start_us) * cut // 51) == joined_rows(logs)


FEATURES = ("user", "item", "country", "recent_items", "recent_times")


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), picked=st.integers(5, 55))
def test_later_events_change_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int, picked: int) -> None:
    """Features of rows until a time, and settled labels, are equal whatever the logs hold from that time on."""
    logs, rows = Logs.random(seed), list[list[Row]]()
    time_us = sorted(row["at"] for row in logs.impressions)[picked]
    others = Logs.random(seed + 1).with_events_of_all(time_us)
    for later in (logs, others, Logs((), (), (), ())):
        folder = tmp_path_factory.mktemp("logs")
        logs.replaced_from(time_us, later).write(folder, seed)
        rows.append([row for row in read(source(folder, **UNTIL)) if row["at"] <= time_us])
    assert rows[0][-1]["at"] == time_us
    for same in rows[1:]:
        for row, other in zip(rows[0], same, strict=True):
            assert all(row[name] == other[name] for name in FEATURES)
            if row["at"] + WITHIN < time_us:
                assert row == other and row["click"] is not None


def test_events_of_the_time_of_an_impression_are_labels_and_no_history(tmp_path: Path) -> None:
    shown = [{"id": number, "at": MINUTE, "user": "a", "item": 1} for number in (1, 2)]
    shown += [{"id": 3, "at": 2 * MINUTE, "user": "a", "item": 1}]
    times = [MINUTE - 1, MINUTE, MINUTE + WITHIN, 90 * MINUTE]
    clicks = [{"id": 1 if at > MINUTE else 2, "at": at, "user": "a", "item": 7 + at % 2} for at in times]
    buys = [{"at": at, "user": "a", "item": 1, "kept": 1} for at in (2 * MINUTE, 90 * MINUTE)]
    Logs(shown, clicks, buys, [{"at": MINUTE, "user": "a", "country": "x"}]).write(tmp_path)
    rows = read(source(tmp_path, **UNTIL))
    # The purchase counts for the last impression alone; with `every`, for all within the window.
    assert [row["click"] for row in rows] == [1, 1, 0] and [row["buy"] for row in rows] == [0, 0, 1]
    assert [row["recent_times"] for row in rows] == [[MINUTE - 1], [MINUTE - 1], [MINUTE - 1, MINUTE]]
    assert [row["country"] for row in rows] == [None, None, "x"]
    joins = {**FIELDS["labels_from"], "buy": {**FIELDS["labels_from"]["buy"], "credit": "every"}}
    rows = read(source(tmp_path, **UNTIL, labels_from=joins))
    assert [row["buy"] for row in rows] == [1, 1, 1]


def test_the_stream_waits_for_its_logs_and_labels_for_theirs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logs = Logs.random(3)
    settled = replace(logs, clicks=[event for event in logs.clicks if event["at"] < 30 * MINUTE])
    newest_us = max(event["at"] for event in settled.clicks)
    settled.write(tmp_path)
    stream = source(tmp_path)
    assert stream.time_range().end_us == newest_us
    assert "wait for newer events of logs.clicks" in caplog.text
    rows = read(stream)
    assert rows and max(row["at"] for row in rows) < newest_us
    for row in rows:
        assert (row["click"] is None) == (row["at"] + WITHIN >= newest_us)
    before = {unit.name: unit.version for unit in stream.parts()}
    logs.write(tmp_path)
    assert stream.time_range().end_us == max(row["at"] for row in logs.impressions) + 1
    assert read(stream) == joined_rows(logs)
    # Labels have become known, which is told by the version of the file of their impressions.
    assert before.keys() == {unit.name for unit in stream.parts()}
    assert all(before[unit.name] != unit.version for unit in stream.parts())
    lateness = {**FIELDS["logs"], "clicks": {**FIELDS["logs"]["clicks"], "lateness": "40m"}}
    assert source(tmp_path, logs=lateness).time_range().end_us == 50 * MINUTE


def test_only_the_joins_of_the_models_columns_are_read(tmp_path: Path) -> None:
    Logs.random(4).write(tmp_path)
    history = {"recent": {**FIELDS["histories"]["recent"], "columns": {"recent_items": "no_such"}}}
    stream = source(tmp_path, histories=history)
    with pytest.raises(ValueError, match=r"logs.clicks.*'no_such'. Did you mean|logs.clicks.*'no_such'. Allowed"):
        read(stream)
    few = stream.select(stream.schema().select(("user", "country")))
    rows = read(few)
    assert rows == [
        {name: value for name, value in row.items() if name not in ("item", "recent_items", "recent_times")}
        for row in joined_rows(Logs.random(4))
    ]


def renamed(value: Any, names: dict[str, str]) -> Any:
    """Renames columns in fields, but for the names of features and labels."""
    if isinstance(value, dict):
        kept = {"column": names.get(value["name"], value["name"])} if value.get("name") in names else {}
        fields = {key: below if key == "name" else renamed(below, names) for key, below in value.items()}
        return {**kept, **fields}
    if isinstance(value, list | tuple):
        return [renamed(below, names) for below in value]
    return names.get(value, value)


def test_columns_may_have_any_name_and_logs_any_url(tmp_path: Path) -> None:
    """Names that are SQL, keywords, and names that queries use themselves."""
    logs, folder = Logs.random(5), "memory://joined-test"
    logs.write(tmp_path)
    names = {"user": '"; DROP TABLE events; --', "item": "k0", "at": "t", "kept": "select", "country": "v0"}
    filesystem, _ = fsspec.url_to_fs(folder)
    for file in tmp_path.rglob("*.parquet"):
        table = pq.read_table(file)
        with filesystem.open(f"{folder}/{file.relative_to(tmp_path)}", "wb") as target:
            pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), target)
    fields = renamed(FIELDS, names)
    fields["histories"]["recent"]["key"] = names["user"]
    rows = read(source(folder, **fields))
    filesystem.rm("/joined-test", recursive=True)
    back = {name: original for original, name in names.items()}
    assert [{back.get(name, name): value for name, value in row.items()} for row in rows] == joined_rows(logs)


def test_a_key_may_be_null_or_of_any_width_and_a_time_may_be_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logs = Logs.random(6)
    logs.write(tmp_path)
    file = tmp_path / "clicks" / "0.parquet"
    table = pq.read_table(file)
    strays = pa.Table.from_pylist([{"id": 101, "at": None, "user": "u1", "item": 3}] * 2, table.schema)
    table = pa.concat_tables([table, strays])
    table = table.set_column(2, "user", table.column("user").combine_chunks().dictionary_encode())
    pq.write_table(table.set_column(0, "id", table.column("id").cast(pa.uint64())), file)
    assert read(source(tmp_path)) == joined_rows(logs)
    assert "2 of 83 events have no time" in caplog.text and "have no user" in caplog.text


def broken(**sections: Any) -> dict[str, Any]:
    """Fields in which keys of sections are replaced: section=(name, key, value)."""
    fields = dict(FIELDS)
    for section, (name, key, value) in sections.items():
        fields[section] = {**FIELDS[section], name: {**FIELDS[section][name], key: value}}
    return fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (broken(labels_from=("click", "within", "1h")), "within is 1h, and the label's delay 5m.*Set delay: 1h"),
        (broken(labels_from=("click", "log", "click")), "there is no log 'click'. Did you mean 'clicks'"),
        (broken(as_of=("profile", "columns", ["user", "id"])), "'id' is that of example_id"),
        (broken(as_of=("profile", "columns", "click")), "'click' is that of labels_from.click"),
        (broken(histories=("recent", "key", "country")), "'country' must be a column of the impressions"),
        (broken(histories=("recent", "keep", "0s")), "longer than 0s"),
        (
            {**FIELDS, "labels_from": {"clack": FIELDS["labels_from"]["click"]}},
            "no label 'clack'. Did you mean 'click'",
        ),
    ],
)
def test_a_config_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Joined.Config.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (broken(logs=("clicks", "path", "/no_such_folder")), r"joined: logs.clicks: .*no file or folder '/no_such_f"),
        (broken(logs=("clicks", "time", "att")), "logs.clicks: .*has no column 'att'. Did you mean 'at'"),
        (broken(logs=("clicks", "time_unit", "timestamp")), "logs.clicks: .*'at' is int64; expected a timestamp"),
        (broken(labels_from=("buy", "value", "keptt")), "logs.buys: .*'keptt'. Did you mean 'kept'"),
        (broken(labels_from=("click", "key", {"user": "id"})), "click.key: 'user' is string in .* and 'id' int64 in"),
        (
            broken(as_of=("profile", "key", {"user": "age"})),
            "profile.key: column 'age' of the log is double; a column to",
        ),
        (broken(as_of=("profile", "key", {"usr": "user"})), "no file at .* has a column 'usr'"),
    ],
)
def test_logs_that_do_not_fit(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], message: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "misfits"
    if not folder.exists():
        Logs.random(7).write(folder)
    with pytest.raises(ValueError, match=message):
        read(source(folder, **fields))


def test_an_age_may_be_longer_than_all_time(tmp_path: Path) -> None:
    Logs.random(1).write(tmp_path)
    rows: list[list[Row]] = []
    for keep in ("100d", "300000000d"):
        recent = FIELDS["histories"]["recent"] | {"keep": keep}
        rows.append(read(source(tmp_path, histories={"recent": recent})))
    assert rows[0] == rows[1] != []
