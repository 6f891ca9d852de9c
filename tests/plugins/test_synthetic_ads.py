"""`synthetic_ads`: rows are a function of seed and number, histories lie in the past, the oracle is the truth."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

import exfm
import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.synthetic_ads.history import Histories
from exfm_plugins.sources.synthetic_ads.source import SyntheticAds
from exfm_plugins.sources.synthetic_ads.world import DAY_US, World

SMALL = {"days": 3, "rows_per_day": 700, "users": 60, "ads": 50, "advertisers": 7, "history_length": 9}
DAYS = SMALL["days"] * DAY_US
WHOLE = exfm.sources.Shard()


class TestSyntheticAds(DataSourceTests):
    component = SyntheticAds
    plugin = exfm_plugins.sources
    configs = (
        {**SMALL, "rows_per_day": 60},
        {**SMALL, "rows_per_day": 90, "seed": 3, "surfaces": 2, "sequence_signal": 0.8, "conversion_delay": "6h"},
    )


def source(**fields: Any) -> SyntheticAds:
    return SyntheticAds(SyntheticAds.Config(**fields))


def read(of: SyntheticAds, start: int, end: int, shard: exfm.sources.Shard = WHOLE) -> pa.Table:
    """The rows of a window given in microseconds since the stream's start."""
    zero = of.time_range().start_us
    batches = list(of.read(exfm.sources.Window(0, zero + start, zero + end), shard))
    empty = next(of.read(exfm.sources.Window(0, zero, zero + DAY_US))).slice(0, 0)
    return pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in [empty, *batches]])


def numbers(table: pa.Table, column: str) -> NDArray[Any]:
    return np.asarray(table[column].to_numpy())


def lengths_and_values(table: pa.Table, column: str) -> tuple[NDArray[Any], NDArray[Any]]:
    lists = table[column].combine_chunks()
    return np.diff(lists.offsets.to_numpy()), lists.flatten().to_numpy()


@cache
def small() -> tuple[SyntheticAds, pa.Table]:
    of = source(**SMALL)
    return of, read(of, 0, DAYS)


@cache
def large() -> pa.Table:
    return read(source(days=4), 0, 4 * DAY_US)


def test_nothing_is_simulated_before_rows_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading an experiment asks for the schema, and a long history takes gigabytes to simulate at once."""
    most: list[int] = []
    before = Histories.before

    def spy(self: Histories, user_B: Any, time_B: Any) -> Any:
        events = before(self, user_B, time_B)
        most.append(len(events.row_E))
        return events

    monkeypatch.setattr(Histories, "before", spy)
    of = source(history_length=1000, users=200)
    of.schema()
    of.time_range()
    assert not most
    next(iter(of.read(exfm.sources.Window(0, of.time_range().start_us, of.time_range().start_us + 3_600_000_000))))
    assert most and max(most) <= 2 << 20


def test_the_seed_decides_every_row() -> None:
    _, table = small()
    assert read(source(**SMALL), 0, DAYS).equals(table)
    other = read(source(**SMALL, seed=1), 0, DAYS)
    for column in ("user_id", "ad_id", "click_oracle", "history.ad"):
        assert not other[column].equals(table[column])


def test_rows_are_ordered_and_numbered() -> None:
    of, table = small()
    assert table.num_rows == 3 * 700
    times = numbers(table.cast(table.schema.set(1, pa.field("event_time", pa.int64()))), "event_time")
    assert (np.diff(times) >= 0).all()
    assert times[0] >= of.time_range().start_us and times[-1] < of.time_range().end_us
    assert len(np.unique(numbers(table, "example_id"))) == table.num_rows


@given(st.lists(st.integers(0, DAYS), max_size=6))
def test_windows_of_any_size_part_the_stream(cuts: list[int]) -> None:
    of, table = small()
    bounds = [0, *sorted(cuts), DAYS]
    parts = [(start, end, read(of, start, end)) for start, end in pairwise(bounds)]
    assert pa.concat_tables([part for *_, part in parts]).equals(table)
    for start, end, part in parts:
        times = part["event_time"].cast(pa.int64()).to_numpy() - of.time_range().start_us
        assert ((times >= start) & (times < end)).all()


@given(st.integers(0, 699), st.integers(0, DAYS))
def test_a_window_boundary_on_an_event_belongs_to_the_later_window(row: int, end: int) -> None:
    of, table = small()
    time = table["event_time"].cast(pa.int64())[row].as_py() - of.time_range().start_us
    assert read(of, time, DAYS)["example_id"][0].as_py() == row
    assert read(of, 0, time).num_rows == row
    assert read(of, end, end).num_rows == 0


@given(st.data())
def test_shards_are_slices_of_the_window(data: st.DataObject) -> None:
    of, _ = small()
    start, end = sorted(data.draw(st.tuples(st.integers(0, DAYS), st.integers(0, DAYS))))
    count = data.draw(st.integers(1, 5))
    shard = exfm.sources.Shard(data.draw(st.integers(0, count - 1)), count)
    window = read(of, start, end)
    expected = window.take(pa.array(range(shard.index, window.num_rows, count), pa.int64()))
    assert read(of, start, end, shard).equals(expected)


def test_batches_are_cut_without_effect_and_say_where_they_begin() -> None:
    of = source(**{**SMALL, "rows_per_day": 20_000, "days": 1})
    start = of.time_range().start_us
    batches = list(of.read(exfm.sources.Window(0, start, start + DAY_US)))
    assert len(batches) > 1
    whole = read(of, 0, DAY_US)
    for batch in batches:
        assert exfm.sources.Origin.from_batch(batch) == exfm.sources.Origin(
            "synthetic_ads(seed=0)", batch["example_id"][0].as_py()
        )
        assert whole["click_oracle"][batch["example_id"][0].as_py()] == batch["click_oracle"][0]


def test_a_longer_stream_begins_with_the_shorter() -> None:
    _, table = small()
    assert read(source(**{**SMALL, "days": 3650}), 0, DAYS).equals(table)


def test_a_window_ten_years_on_generates_its_own_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    of = source(**{**SMALL, "days": 3650, "rows_per_day": 24_000})
    made: list[int] = []
    impressions = World.impressions

    def counted(self: World, row: Any, time: Any) -> Any:
        made.append(len(row))
        return impressions(self, row, time)

    monkeypatch.setattr(World, "impressions", counted)
    zero, hour = of.time_range().start_us + 3649 * DAY_US, DAY_US // 24
    next(of.read(exfm.sources.Window(0, zero, zero + hour)))  # the truth is measured once, on other rows
    made.clear()
    rows = sum(batch.num_rows for batch in of.read(exfm.sources.Window(0, zero, zero + hour)))
    assert abs(rows - 1000) <= 1 and sum(made) == rows
    made.clear()
    rest = sum(batch.num_rows for batch in of.read(exfm.sources.Window(0, zero, zero + hour), exfm.sources.Shard(1, 4)))
    assert sum(made) == rest == (rows - 1 + 3) // 4


def test_rows_hold_what_the_schema_says() -> None:
    of, table = small()
    schema = of.schema()
    assert schema.tasks == ("click", "conversion")
    for feature in schema.features:
        parts: tuple[Any, ...] = feature.fields if isinstance(feature, exfm.schema.SequenceFeature) else (feature,)
        for part in parts:
            column = table[part.source_column].combine_chunks()
            values = column.flatten() if pa.types.is_list(column.type) else column
            assert values.null_count == 0 and np.isfinite(values.to_numpy()).all()
            if getattr(part, "ids", "") == "row" and part.kind != "dense":
                assert values.to_numpy().min() >= 0 and values.to_numpy().max() < part.rows
    counts, _ = lengths_and_values(table, "topics")
    assert set(counts) == {1, 2, 3}
    assert set(numbers(table, "surface")) == {0, 1, 2, 3}


def test_the_config_says_delay_and_domains() -> None:
    of = source(**SMALL, surfaces=2, conversion_delay="6h", start="2025-03-01")
    click, conversion = of.schema().labels
    assert click.delay.total_seconds() == 0 and conversion.delay.total_seconds() == 6 * 3600
    assert set(numbers(read(of, 0, DAYS), "surface")) == {0, 1}
    assert str(exfm.sources.Window(0, *vars(of.time_range()).values())) == "2025-03-01T00:00:00Z"
    with pytest.raises(ValidationError, match="rows_a_day"):
        source(rows_a_day=3)
    with pytest.raises(ValidationError, match="sequence_signal"):
        source(sequence_signal=1.5)


def test_histories_lie_strictly_before_the_event_oldest_first() -> None:
    _, table = small()
    lengths, ages = lengths_and_values(table, "history.age_hours")
    assert lengths.min() == 0 and lengths.max() == SMALL["history_length"]
    assert (ages > 0).all()
    same_row = np.diff(np.repeat(np.arange(len(lengths)), lengths)) == 0
    assert (np.diff(ages)[same_row] <= 0).all()
    for column in ("history.ad", "history.topic"):
        assert (lengths_and_values(table, column)[0] == lengths).all()


@given(st.integers(0, 400 * DAY_US), st.integers(0, 20 * DAY_US))
def test_a_later_history_shows_the_same_events_older(time: int, wait: int) -> None:
    world = World(0, users=80, ads=50, advertisers=5, surfaces=2, ad_lifetime_us=DAY_US, drift=1.0)
    histories, user = Histories(0, world, 12), np.arange(80)
    seen: list[set[tuple[int, ...]]] = []
    for at in (time, time + wait):
        events = histories.before(user, np.full(80, at))
        assert (events.age_E > 0).all()
        seen.append(set(zip(events.row_E, at - events.age_E, events.ad_id_E, events.topic_E, strict=True)))
    newest = {user: started for user, started, _, _ in sorted(seen[0])}
    old = {event for event in seen[1] if event[1] <= newest.get(event[0], -(2**62))}
    assert old <= seen[0]
    assert wait > 0 or seen[0] == seen[1]


def test_no_feature_depends_on_an_outcome() -> None:
    _, table = small()
    other = read(source(**SMALL, click_rate=0.5, logit_std=0.3), 0, DAYS)
    outcomes = ["click", "conversion", "click_oracle", "conversion_oracle"]
    assert other.drop_columns(outcomes).equals(table.drop_columns(outcomes))
    assert not other["click"].equals(table["click"])


@pytest.mark.parametrize("task", ["click", "conversion"])
def test_the_oracle_is_calibrated_at_every_level(task: str) -> None:
    table = large()
    label, truth = numbers(table, task).astype(float), numbers(table, f"{task}_oracle")
    assert ((truth > 0) & (truth < 1)).all()
    for part in [np.arange(len(label)), *np.array_split(np.argsort(truth), 8)]:
        sigma = np.sqrt((truth[part] * (1 - truth[part])).sum())
        assert abs((label[part] - truth[part]).sum()) < 4 * sigma


@pytest.mark.parametrize(("task", "best"), [("click", 0.85), ("conversion", 0.75)])
def test_the_oracle_beats_any_constant(task: str, best: float) -> None:
    table = large()
    label, truth = numbers(table, task).astype(float), numbers(table, f"{task}_oracle")
    loss = -np.where(label == 1, np.log(truth), np.log(1 - truth)).mean()
    rate = label.mean()
    constant = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert 0.5 < loss / constant < best


def test_rates_are_about_the_asked_ones_and_a_conversion_needs_a_click() -> None:
    table = large()
    click, conversion = numbers(table, "click"), numbers(table, "conversion")
    assert 0.08 < click.mean() < 0.16
    assert 0.14 < conversion.sum() / click.sum() < 0.26
    assert (conversion <= click).all()
    assert (numbers(table, "conversion_oracle") < numbers(table, "click_oracle")).all()


def advertiser_rates(of: SyntheticAds, day: int) -> NDArray[Any]:
    """Mean true click probability per advertiser on one day."""
    table = read(of, day * DAY_US, (day + 1) * DAY_US)
    advertiser, truth = numbers(table, "advertiser"), numbers(table, "click_oracle")
    return np.bincount(advertiser, truth, 20) / np.bincount(advertiser, minlength=20)


def test_drift_moves_the_truth_and_no_drift_leaves_it() -> None:
    fields = {"days": 400, "rows_per_day": 10_000, "advertisers": 20, "sequence_signal": 0.0}
    still, moving = source(**fields, drift=0), source(**fields, drift=3)

    def likeness(of: SyntheticAds, day: int) -> float:
        return float(np.corrcoef(advertiser_rates(of, 0), advertiser_rates(of, day))[0, 1])

    assert likeness(still, 12) > 0.8
    assert likeness(still, 390) > 0.8
    assert likeness(moving, 12) < 0.6


def test_latents_drift_at_constant_spread() -> None:
    user, days = np.arange(4000), [0, 5, 25, 3000]
    world = World(3, users=4000, ads=50, advertisers=5, surfaces=2, ad_lifetime_us=DAY_US, drift=1.0)
    now, soon, later, far = (world.user_latents.at(user, np.full(4000, day * DAY_US)) for day in days)
    assert 0 < np.abs(soon - now).mean() < np.abs(later - now).mean()
    assert abs(far[:, 0].std() - now[:, 0].std()) < 0.35
    world = World(3, users=4000, ads=50, advertisers=5, surfaces=2, ad_lifetime_us=DAY_US, drift=0.0)
    assert (world.user_latents.at(user, np.full(4000, 3000 * DAY_US)) == world.user_latents.at(user, 0 * user)).all()


def test_without_sequence_signal_the_truth_ignores_the_history() -> None:
    tables = {
        (signal, longest): read(source(**{**SMALL, "history_length": longest}, sequence_signal=signal), 0, DAYS)
        for signal in (0.0, 0.5)
        for longest in (3, 20)
    }
    for task in ("click", "conversion", "click_oracle", "conversion_oracle"):
        assert tables[0.0, 3][task].equals(tables[0.0, 20][task])
    assert not tables[0.0, 3]["history.ad"].equals(tables[0.0, 20]["history.ad"])
    assert not tables[0.5, 3]["click_oracle"].equals(tables[0.5, 20]["click_oracle"])


def test_with_sequence_signal_alone_the_history_decides() -> None:
    table = read(source(**SMALL, sequence_signal=1.0), 0, DAYS)
    empty = lengths_and_values(table, "history.ad")[0] == 0
    truth = numbers(table, "click_oracle")
    assert np.ptp(truth[empty]) < 1e-12 and truth[~empty].std() > 0.05


def test_new_ads_replace_old_ones() -> None:
    of = source(**{**SMALL, "days": 30}, ad_lifetime="2d")
    first, last = (read(of, day * DAY_US, (day + 1) * DAY_US) for day in (0, 29))
    assert not set(numbers(first, "ad_id")) & set(numbers(last, "ad_id"))
    assert set(numbers(first, "ad_id") % 50) == set(numbers(last, "ad_id") % 50)
    assert numbers(first, "ad_age_hours").max() < 1.5 * 48
