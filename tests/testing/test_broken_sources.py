"""Data sources with a fault each, and the test of the kit that reports it."""

from __future__ import annotations

import random
import socket
import sqlite3
import tempfile
from dataclasses import replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import Field

import exfm
from exfm.testing import DataSourceTests
from tests.testing.sound import failed

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
ROWS = 60
BATCH = 8
WHOLE = exfm.sources.Shard()


class Sound(exfm.DataSource):
    """Nothing is wrong: rows in threes of one time, a second apart, in batches of eight."""

    name = "sound"

    def schema(self):
        return exfm.schema.FeatureSchema(
            features=(
                exfm.schema.CategoricalFeature(name="item", rows=10, ids="row"),
                exfm.schema.DenseFeature(name="price"),
                exfm.schema.SequenceFeature(
                    name="seen",
                    max_length=3,
                    fields=(exfm.schema.SequenceField(name="item", column="seen_item", rows=10),),
                ),
            ),
            labels=(exfm.schema.Label(name="click"),),
        )

    def time_range(self):
        times = self.times()
        return exfm.sources.TimeRange(int(times[0]), int(times[-1]) + 1)

    def times(self):
        return START + np.arange(ROWS) // 3 * SECOND

    def bounds(self, window):
        start, end = np.searchsorted(self.times(), [window.start_us, window.end_us])
        return int(start), int(end)

    def read(self, window, shard=WHOLE):
        return exfm.sources.slice_rows(self.rows(*self.bounds(window)), shard)

    def rows(self, start, end):
        for first in range(start, end, BATCH):
            yield exfm.sources.Origin("log", first).mark(self.batch(np.arange(first, min(first + BATCH, end))))

    def batch(self, row):
        return pa.RecordBatch.from_pydict(self.columns(row))

    def columns(self, row):
        return {
            "example_id": pa.array(row),
            "event_time": pa.array(self.times()[row]).cast(pa.timestamp("us", "UTC")),
            "item": pa.array(row % 10),
            "price": pa.array(row / 7),
            "seen_item": pa.array([list(range(number % 3)) for number in row], pa.list_(pa.int64())),
            "click": pa.array((row % 2).astype(np.int8)),
        }


class FromAFile(Sound):
    """Nothing is wrong: the number of rows is in a file."""

    name = "from_a_file"

    class Config(exfm.ComponentConfig):
        path: str = Field(description="The file.")

    config: Config

    def times(self):
        try:
            rows = int(Path(self.config.path).read_text()[:2])
        except OSError as error:
            raise ValueError(f"{self.config.path} cannot be read: {error}") from error
        return super().times()[:rows]

    def parts(self):
        times, path = self.times(), self.config.path
        return [exfm.sources.StreamPart("log", Path(path).read_text(), int(times[0]), int(times[-1]))]

    def next_event_us(self, from_us):
        times = self.times()
        later = times[times >= from_us]
        return int(later[0]) if len(later) else None


class Selects(Sound):
    """Nothing is wrong: it yields keys alone of batches that no reader needs."""

    readers: Any = ()

    def select_rows(self, readers):
        other = type(self)(self.config)
        other.readers = readers
        return other

    def rows(self, start, end):
        for batch in super().rows(start, end):
            yield batch if self.needs(batch) else self.only_keys(batch)

    def needs(self, batch):
        items = set(batch["item"].to_pylist())
        return not self.readers or any(items & set(needed["item"]) for needed in self.readers)

    def only_keys(self, batch):
        origin = replace(exfm.sources.Origin.from_batch(batch), keys_only=True)
        return origin.mark(batch.select(["example_id", "event_time", "item"]))


class StillWritten(Sound):
    """Nothing is wrong: the newest rows may not be complete."""

    def time_range(self):
        return exfm.sources.TimeRange(START, START + 9 * SECOND)


class GrowingSchema(Sound):
    """Its schema counts the items of the rows read so far."""

    most = 10

    def schema(self):
        items = exfm.schema.CategoricalFeature(name="item", rows=self.most, ids="row")
        return super().schema().model_copy(update={"features": (items,)})

    def rows(self, start, end):
        self.most = 20
        return super().rows(start, end)


class Retention(Sound):
    """Its oldest rows are gone as time passes."""

    gone = 0

    def times(self):
        return super().times() + self.gone * 3 * SECOND

    def rows(self, start, end):
        yield from super().rows(start, end)
        self.gone = 1


class NoRows(Sound):
    def read(self, window, shard=WHOLE):
        return iter(())


class EmptyRange(Sound):
    def time_range(self):
        return exfm.sources.TimeRange(START, START)


class Tables(Sound):
    def read(self, window, shard=WHOLE):
        return (pa.Table.from_batches([batch]) for batch in super().read(window, shard))


class Columns(Sound):
    """Other columns than the sound ones."""

    def columns(self, row):
        return super().columns(row) | self.other(row)

    def other(self, row):
        return {}


class Renamed(Columns):
    def batch(self, row):
        return super().batch(row).rename_columns(["example_id", "event_time", "itme", "price", "seen_item", "click"])


class TextTimes(Columns):
    def other(self, row):
        return {"price": pa.array([f"{number} EUR" for number in row])}


class Ratings(Columns):
    def other(self, row):
        return {"click": pa.array(row % 5)}


class OffByOne(Columns):
    def other(self, row):
        return {"item": pa.array(row % 10 + 1)}


class Missing(Columns):
    def other(self, row):
        return {"price": pa.array([None if number == 7 else 1.0 for number in row])}


class NumbersEachBatch(Columns):
    def other(self, row):
        return {"example_id": pa.array(np.arange(len(row)))}


class FirstBatchInFloats(Columns):
    def other(self, row):
        return {"price": pa.array(row / 7, pa.float32() if row[0] == 0 else pa.float64())}


class Unsorted(Sound):
    """A row comes three seconds before its time."""

    def batch(self, row):
        swapped = row.copy()
        swapped[row == 20], swapped[row == 21] = 21, 20
        return super().batch(swapped)


class Shuffles(Sound):
    """It draws its negatives anew each time it is asked."""

    def columns(self, row):
        return super().columns(row) | {"item": pa.array([random.randrange(10) for _ in row])}


class NumbersAsItGoes(Sound):
    """Ids count the rows that this object has read."""

    read_so_far = 0

    def batch(self, row):
        numbers = np.arange(self.read_so_far, self.read_so_far + len(row))
        self.read_so_far += len(row)
        batch = super().batch(row)
        return batch.set_column(0, "example_id", pa.array(numbers))


class OneCursor(Sound):
    """All reads continue from the same position."""

    position = 0

    def rows(self, start, end):
        self.position = start
        while self.position < end:
            first, self.position = self.position, self.position + BATCH
            yield self.batch(np.arange(first, min(first + BATCH, end)))


class OneConnection(Sound):
    """Its database belongs to the thread that opened it."""

    def __init__(self, config):
        super().__init__(config)
        self.connection = sqlite3.connect(":memory:")

    def rows(self, start, end):
        self.connection.execute("select 1")
        yield from super().rows(start, end)

    def __del__(self):
        self.connection.close()


class BothEnds(Sound):
    """The end of a window belongs to it."""

    def bounds(self, window):
        start, end = np.searchsorted(self.times(), [window.start_us, window.end_us + 1])
        return int(start), int(end)


class WholeSeconds(Sound):
    """It finds the rows of a window by the whole second."""

    def bounds(self, window):
        seconds = np.array([window.start_us, window.end_us]) // SECOND * SECOND
        start, end = np.searchsorted(self.times(), seconds)
        return int(start), int(end)

    def time_range(self):
        return exfm.sources.TimeRange(START, START + 20 * SECOND)


class StrictlyAfter(Sound):
    """A row at the very start of a window is in none."""

    def bounds(self, window):
        start, end = np.searchsorted(self.times(), [window.start_us + 1, window.end_us])
        return (0 if window.start_us <= START < window.end_us else int(start)), int(end)


class ForgetsTheLast(Sound):
    """Its range ends at the last row, which it thereby loses."""

    def time_range(self):
        return exfm.sources.TimeRange(START, int(self.times()[-1]))


class StartsLate(Sound):
    def time_range(self):
        return exfm.sources.TimeRange(START + 1, START + 20 * SECOND)


class RefusesTheFuture(Sound):
    def read(self, window, shard=WHOLE):
        if window.end_us > START + 3600 * SECOND:
            raise ValueError("there is nothing to read")
        return super().read(window, shard)


class AllToEach(Sound):
    """Each process reads everything."""

    def read(self, window, shard=WHOLE):
        return super().read(window, WHOLE)


class ByBatch(Sound):
    """A shard has whole batches, so that shards are of different lengths."""

    def read(self, window, shard=WHOLE):
        batches = islice(super().read(window), shard.index, None, shard.count)
        return exfm.sources.slice_rows(batches, WHOLE)


class Divides(Sound):
    """Nothing is wrong: processes divide its batches, in any order of time."""

    in_order = False
    splits = True

    def read(self, window, shard=WHOLE):
        for batch in islice(self.rows(*self.bounds(window)), shard.index, None, shard.count):
            last_us = batch.column("event_time")[-1].value
            yield replace(exfm.sources.Origin.from_batch(batch), next_us=last_us).mark(batch)


class DividesAsItLikes(Divides):
    """Each object divides in another order."""

    objects = count()

    def __init__(self, config):
        super().__init__(config)
        self.shift = next(self.objects)

    def read(self, window, shard=WHOLE):
        return super().read(window, replace(shard, index=(shard.index + self.shift) % shard.count))


class PromisesOfAShard(Divides):
    """A shard says that nothing comes any more."""

    def read(self, window, shard=WHOLE):
        for batch in super().read(window, shard):
            origin = exfm.sources.Origin.from_batch(batch)
            yield replace(origin, next_us=window.end_us if shard.count > 1 else origin.next_us).mark(batch)


class SplitsInOrder(Sound):
    splits = True


class AlwaysRowZero(Sound):
    def rows(self, start, end):
        return (exfm.sources.Origin("log", 0).mark(batch) for batch in super().rows(start, end))


class ReadsForItsSchema(Sound):
    def schema(self):
        next(self.rows(0, 1))
        return super().schema()


class CallsReadForItsSchema(Sound):
    def schema(self):
        for _ in self.read(exfm.sources.Window(0, 0, 1)):
            pass
        return super().schema()


class ReadsItsFileForItsSchema(FromAFile):
    """Not as record batches."""

    def schema(self):
        if Path(self.config.path).exists():
            Path(self.config.path).read_text()
        return super().schema()

    def rows(self, start, end):
        for batch in super().rows(start, end):
            yield exfm.sources.Origin(self.config.path, exfm.sources.Origin.from_batch(batch).row).mark(batch)

    def parts(self):
        return ()


class KeyOfAPath(FromAFile):
    def times(self):
        if not Path(self.config.path).exists():
            raise KeyError(self.config.path)
        return super().times()


class SilentOfAPath(FromAFile):
    """It takes a path that is not there for a stream of the default length."""

    def times(self):
        return super().times() if Path(self.config.path).exists() else Sound.times(self)


class NamesNoPath(FromAFile):
    def times(self):
        if not Path(self.config.path).exists():
            raise ValueError("cannot be read")
        return super().times()


class LeavesOpen(Sound):
    """What a reading opens, it closes at its end; a reading that is given up is never at its end."""

    def __init__(self, config):
        super().__init__(config)
        self.open = []

    def rows(self, start, end):
        self.open.append(socket.socket())
        yield from super().rows(start, end)
        self.open.pop().close()

    def __del__(self):
        for file in self.open:
            file.close()


class WholeWindow(Sound):
    def read(self, window, shard=WHOLE):
        return iter(list(super().read(window, shard)))


class WholeTable(Sound):
    """It cuts the whole window into batches."""

    def rows(self, start, end):
        batches = list(super().rows(start, end))
        for batch in pa.Table.from_batches(batches).to_batches() if batches else ():
            yield exfm.sources.Origin("log", start).mark(batch)
            start += batch.num_rows


class OneBatch(Sound):
    def times(self):
        return START + np.arange(140_000) * 1000

    def rows(self, start, end):
        if end > start:
            yield self.batch(np.arange(start, end))


class SoundHistory(Sound):
    """Nothing is wrong: a user's history is of the items of his earlier rows, the newest three."""

    def schema(self):
        field = exfm.schema.SequenceField(name="item", column="seen_item", table="item", rows=20, ids="row")
        items = exfm.schema.CategoricalFeature(name="item", rows=20, ids="row")
        seen = exfm.schema.SequenceFeature(name="seen", max_length=3, fields=(field,))
        return super().schema().model_copy(update={"features": (items, seen), "group": "user"})

    def columns(self, row):
        histories = [self.history(number) for number in row.tolist()]
        seen = {"seen_item": pa.array(histories, pa.list_(pa.int64())), "user": pa.array(row % 2)}
        return super().columns(row) | seen | {"item": pa.array([self.item(number) for number in row.tolist()])}

    def item(self, row):
        return row * 7 % 20

    def earlier(self, row):
        """Returns a user's rows before this row; of three rows with the same time he has a row or two."""
        return [self.item(other) for other in range(row % 2, row // 3 * 3, 2)]

    def history(self, row):
        return self.earlier(row)[-3:]


class HoldsItsOwn(SoundHistory):
    def history(self, row):
        return [*self.earlier(row), self.item(row)][-3:]


class HoldsItsClick(SoundHistory):
    """Only where it was clicked."""

    def history(self, row):
        return [*self.earlier(row), self.item(row)][-3:] if row % 4 in (1, 3) else self.earlier(row)[-3:]


class NewestFirst(SoundHistory):
    def history(self, row):
        return super().history(row)[::-1]


class KeepsTheOldest(SoundHistory):
    def history(self, row):
        return self.earlier(row)[:3]


class RemembersItsTime(FromAFile):
    @cached_property
    def known(self):
        return super().time_range()

    def time_range(self):
        return self.known


class RemembersItsRows(FromAFile):
    @cached_property
    def known(self):
        return super().times()

    def rows(self, start, end):
        return super().rows(start, min(end, len(self.known)))

    def time_range(self):
        assert len(self.known)
        return super().time_range()


class OneVersion(FromAFile):
    def parts(self):
        return [replace(unit, version="1") for unit in super().parts()]


class OtherNames(FromAFile):
    def parts(self):
        return [replace(unit, name="other") for unit in super().parts()]


class ShortPart(FromAFile):
    def parts(self):
        return [replace(unit, last_us=unit.last_us - 1) for unit in super().parts()]


class VersionOfTheMoment(FromAFile):
    def parts(self):
        return [replace(unit, version=str(random.random())) for unit in super().parts()]


class LosesUnneededRows(Selects):
    def only_keys(self, batch):
        return super().only_keys(batch).slice(1)


class LosesTheirColumn(Selects):
    def only_keys(self, batch):
        return super().only_keys(batch).drop_columns(["item"])


class LosesNeededRows(Selects):
    def needs(self, batch):
        return super().needs(batch) and (not self.readers or batch["item"][0].as_py() == 0)


class SkipsAnEvent(FromAFile):
    def next_event_us(self, from_us):
        return super().next_event_us(from_us + 1)


class NextIsEarlier(FromAFile):
    def next_event_us(self, from_us):
        return from_us // (5 * SECOND) * 5 * SECOND


class NextIsTheFirst(FromAFile):
    """It ignores the time in the question."""

    def next_event_us(self, from_us):
        return START


class EndsTooSoon(FromAFile):
    def next_event_us(self, from_us):
        event_us = super().next_event_us(from_us)
        return event_us if event_us is not None and event_us < self.times()[-1] else None


class DownloadsToNowhere(Sound):
    downloads = (
        exfm.sources.Download(
            name="nowhere",
            title="A log",
            licence="free",
            home="https://nowhere",
            folder="nowhere",
            files=(exfm.sources.RemoteFile("https://nowhere/rows"),),
            fields={"file": "{folder}/rows"},
        ),
    )


class DownloadsText(Sound):
    downloads = ("https://nowhere/rows",)  # type: ignore[assignment]  # the fault


BROKEN: dict[type[Sound], dict[str, str]] = {
    DownloadsToNowhere: {"downloads_are_of_fields": "'nowhere' sets 'file', which is no field of Config"},
    DownloadsText: {"downloads_are_of_fields": "must hold exfm.sources.Download, not 'https://nowhere/rows'"},
    ReadsForItsSchema: {"schema_reads_no_rows": "schema() reads rows, by Sound.batch"},
    CallsReadForItsSchema: {"schema_reads_no_rows": "schema() calls read()"},
    ReadsItsFileForItsSchema: {"schema_reads_no_rows": "KiB of rows where there are 4096 KiB"},
    KeyOfAPath: {"a_path_that_is_not_there": "raise a ValueError that names it, not KeyError: '/no_such_folder/rows'"},
    SilentOfAPath: {"a_path_that_is_not_there": "it reads 60 rows without a word"},
    NamesNoPath: {"a_path_that_is_not_there": "the message does not name the path: cannot be read"},
    LeavesOpen: {"readings_are_closed": "8 readings, half of them given up, left 4 files or sockets open"},
    WholeWindow: {"reads_a_batch_at_a_time": "has all 60 rows of the window before read() yields the first 8"},
    WholeTable: {"reads_a_batch_at_a_time": "has all 60 rows of the window before read() yields the first 8"},
    HoldsItsOwn: {"history_is_of_earlier_events": "'item' is in the history 'seen' of 60 of 60 rows, and in another"},
    HoldsItsClick: {"history_is_of_earlier_events": "'item' is in the history 'seen' of 30 of 30 rows with click=1"},
    NewestFirst: {"history_is_of_earlier_events": "new events come first in 'seen'"},
    KeepsTheOldest: {"history_is_of_earlier_events": "'seen' no longer changes where it has 3 events"},
    RemembersItsTime: {"growth_is_seen": "rows were added, and time_range() still ends at"},
    RemembersItsRows: {"growth_is_seen": "but read() yields nothing new"},
    OneVersion: {"growth_is_seen": "parts() has neither another part nor another version of log"},
    OtherNames: {"parts_are_where_rows_come_from": "rows come from 'log', which is none of the parts other"},
    ShortPart: {"parts_are_where_rows_come_from": "log has a row of 2023-11-14T22:13:30Z"},
    VersionOfTheMoment: {"parts_are_where_rows_come_from": "parts() changes from call to call"},
    LosesUnneededRows: {"unneeded_rows_keep_their_keys": "keys read for item: 0, it has"},
    LosesTheirColumn: {"unneeded_rows_keep_their_keys": "item is missing where item is not 0"},
    LosesNeededRows: {"unneeded_rows_keep_their_keys": "read for item: 0, it has"},
    SkipsAnEvent: {"next_event_skips_none": "the next event is at"},
    NextIsEarlier: {"next_event_skips_none": "the next event is at"},
    NextIsTheFirst: {"next_event_skips_none": "the next event is at"},
    EndsTooSoon: {"next_event_skips_none": "is None, and there is an event of 2023-11-14T22:13:30Z"},
    GrowingSchema: {"says_the_same_each_time": "the schema after reading is not what it was"},
    Retention: {
        "says_the_same_each_time": "it may only grow at its end",
        "reading_again_gives_the_same_rows": "read again, it has 51 rows instead of 60",
    },
    NoRows: {"reading_again_gives_the_same_rows": "there are no rows in the time range"},
    EmptyRange: {"says_the_same_each_time": "time_range() is empty"},
    Tables: {"rows_are_what_the_schema_says": "read() must yield pyarrow.RecordBatch, not Table"},
    Renamed: {"rows_are_what_the_schema_says": "log, row 0: item: the column is missing. Did you mean 'itme'?"},
    TextTimes: {"rows_are_what_the_schema_says": "log, row 0: price: the column must be a number, not string"},
    Ratings: {
        "rows_are_what_the_schema_says": "log, row 2: click: a label is 0 or 1, or null where it is not known; given: 2"
    },
    OffByOne: {"rows_are_what_the_schema_says": "log, row 9: item: a table row is an integer from 0 to 9; given: 10"},
    Missing: {"rows_are_what_the_schema_says": "log, row 7: price: the value is missing, NaN or infinite"},
    NumbersEachBatch: {
        "example_ids_are_unique": "8 example ids come more than once, such as 0",
        "windows_part_the_stream": "row 30 has example_id=0 instead of 6",
    },
    FirstBatchInFloats: {"columns_keep_their_types": "price: float"},
    Unsorted: {
        "rows_are_what_the_schema_says": "time goes backwards",
        "rows_are_in_order_of_time": "a row of 2023-11-14T22:13:26Z",
    },
    Shuffles: {"reading_again_gives_the_same_rows": "read again, row "},
    NumbersAsItGoes: {"reading_again_gives_the_same_rows": "row 0 has example_id=60 instead of 0"},
    OneCursor: {"reading_is_independent_of_other_reading": "read on after another reading, it has 8 rows instead of"},
    OneConnection: {"reads_in_another_thread": "SQLite objects created in a thread can only be used in that same"},
    BothEnds: {"windows_part_the_stream": "has a row of", "the_time_range_has_every_row": "before the start"},
    WholeSeconds: {"windows_part_the_stream": "has a row of"},
    StrictlyAfter: {"windows_part_the_stream": "57 rows instead of 60"},
    ForgetsTheLast: {"the_time_range_has_every_row": "3 rows lie at or after the end"},
    StartsLate: {"the_time_range_has_every_row": "3 rows lie before the start of time_range()"},
    RefusesTheFuture: {"the_time_range_has_every_row": "there is nothing to read"},
    AllToEach: {"shards_part_a_window": "shard 0 of 2, it has 60 rows instead of 30"},
    ByBatch: {"shards_part_a_window": "shard 0 of 2"},
    DividesAsItLikes: {"shards_part_a_window": "all of 2 shards, it has"},
    PromisesOfAShard: {"rows_are_in_order_of_time": "comes after a batch with next_us"},
    SplitsInOrder: {"shards_part_a_window": "a source that is in_order shards by position"},
    AlwaysRowZero: {"origins_count_on": "log, row 0: a batch before it has reached row 8"},
}
FAILS_THROUGHOUT = {NoRows, EmptyRange, Tables, Shuffles, NumbersAsItGoes, Retention}
"""What these have wrong shows in most tests; those above must say it best."""


def failures(component: type[Sound], **attributes: Any) -> dict[str, str]:
    if issubclass(component, FromAFile):
        with tempfile.TemporaryDirectory() as folder:
            TestFromAFile().write(Path(folder))
            stream = {
                "configs": TestFromAFile.configs,
                "write": TestFromAFile.write,
                "grow": TestFromAFile.grow,
                "folder": Path(folder),
            }
            return failed(DataSourceTests, {"component": component} | stream | attributes, TestFromAFile.configs[0])
    return failed(DataSourceTests, {"component": component} | attributes)


@pytest.mark.parametrize("component", [Sound, Columns, FromAFile, Selects, Divides, SoundHistory])
def test_nothing_is_wrong_with_sound_ones(component: type[Sound]) -> None:
    assert not failures(component)


class TestFromAFile(DataSourceTests):
    component = FromAFile
    configs = ({"path": "{folder}/rows"},)

    def write(self, folder: Path) -> None:
        (folder / "rows").write_text("31")

    def grow(self, folder: Path) -> None:
        (folder / "rows").write_text("40")


class TestStillWritten(DataSourceTests):
    component = StillWritten
    complete = False


def test_a_batch_has_a_bounded_number_of_rows() -> None:
    kit = type("TestIt", (DataSourceTests,), {"component": OneBatch})()
    with pytest.raises(AssertionError, match="a batch has 140000 rows, more than 131072; yield slices of it"):
        kit.test_reads_a_batch_at_a_time({})


def test_candidates_of_their_own_history_where_that_is_so() -> None:
    assert not failures(HoldsItsOwn, repeats=True)


def test_a_stream_that_is_said_to_be_complete_is() -> None:
    assert failures(StillWritten).keys() == {"the_time_range_has_every_row"}


@pytest.mark.parametrize("component", BROKEN, ids=lambda component: component.__name__)
def test_what_is_wrong_is_said_by_its_own_test(component: type[Sound]) -> None:
    messages = failures(component)
    if component in FAILS_THROUGHOUT:
        assert messages.keys() >= BROKEN[component].keys()
    else:
        assert messages.keys() == BROKEN[component].keys()
    for test, words in BROKEN[component].items():
        assert words in messages[test], messages[test]


def test_every_test_says_what_is_required_and_why() -> None:
    tests = [name for name in dir(DataSourceTests) if name.startswith("test_")]
    assert len(tests) > 15 and all(getattr(DataSourceTests, name).__doc__ for name in tests)
