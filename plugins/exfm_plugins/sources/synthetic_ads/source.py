"""Generates the rows of synthetic ads as Arrow record batches, with their configuration and schema.

Legend: B rows of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

import exfm
from exfm_plugins.sources.synthetic_ads.history import Events, Histories
from exfm_plugins.sources.synthetic_ads.randomness import Ints, bits, key, uniform
from exfm_plugins.sources.synthetic_ads.truth import Truth
from exfm_plugins.sources.synthetic_ads.world import AGE_BUCKETS, COUNTRIES, DAY_US, FORMATS, TOPICS, Impressions, World

HOUR_US = DAY_US // 24
BATCH_ROWS, BATCH_EVENTS = 8192, 1 << 18  # limits of a batch, which bound its arrays to some tens of MB
AD_ROWS_PER_CAMPAIGN = 16  # a campaign runs several ads in a stream, and hashing needs spare rows
_WHOLE = exfm.sources.Shard()


class SyntheticAds(exfm.DataSource):
    """Generates a drifting stream of ad impressions whose true probabilities are known.

    Users see ads of campaigns on surfaces (the domains), click or not, and after a click convert or not, which is
    reported later. Preferences, qualities and surfaces drift, campaigns replace their ads, and a user's activity
    history shows the user's present interest. The columns ``click_oracle`` and ``conversion_oracle`` hold the true
    probabilities: no model can have a lower log loss, because the labels are random beyond them.

    A row is a pure function of the seed and the row's number. So a window costs as much as its rows, at constant
    memory, however long the stream is; a shard generates only its rows; and a longer stream begins with the rows of a
    shorter stream. (The bits of floating-point functions are those of the machine's numpy.)

    Example:
        >>> source = SyntheticAds(SyntheticAds.Config(days=365, drift=2.0))
        >>> hour = exfm.sources.Window(0, source.time_range().start_us, source.time_range().start_us + 3_600_000_000)
        >>> sum(batch.num_rows for batch in source.read(hour))
        833
    """

    name: ClassVar[str] = "synthetic_ads"

    free_fields: ClassVar[frozenset[str]] = frozenset({"days"})

    class Config(exfm.ComponentConfig):
        """Configures the synthetic stream."""

        days: int = Field(14, ge=1, le=36_500, description="Length of the stream in days.")
        rows_per_day: int = Field(20_000, ge=1, le=100_000_000, description="Impressions per day, evenly spread.")
        seed: int = Field(0, description="Seed of everything: who there is, what happens, every label.")
        start: date = Field(date(2026, 1, 1), description="First day of the stream; it begins at midnight UTC.")
        users: int = Field(5_000, ge=1, description="Number of users; some are far more active than others.")
        ads: int = Field(1_000, ge=TOPICS, description="Ads that run at a time; each is replaced by a new one in turn.")
        advertisers: int = Field(100, ge=1, description="Number of advertisers, who own the ads.")
        surfaces: int = Field(4, ge=1, description="Number of surfaces an ad is shown on: the domains of the stream.")
        history_length: int = Field(
            30, ge=1, le=10_000, description="Events in the longest history; the mean is about a third of it."
        )
        ad_lifetime: exfm.sources.Duration = Field(
            timedelta(days=21),
            ge=timedelta(hours=1),
            description="How long an ad runs until a new one replaces it, on average.",
        )
        drift: float = Field(
            1.0,
            ge=0,
            le=1000,
            description="Speed at which preferences and qualities move; 0 stands still, 1 turns them in months.",
        )
        sequence_signal: float = Field(
            0.4, ge=0, le=1, description="Share of the click logit's variance that sits in the activity history."
        )
        click_rate: float = Field(0.12, gt=0, lt=1, description="Mean probability of a click, roughly.")
        conversion_rate: float = Field(
            0.2, gt=0, lt=1, description="Mean probability of a conversion after a click, roughly."
        )
        logit_std: float = Field(
            1.6, ge=0, le=10, description="Spread of the true logits: 0 is a coin toss, more leaves less to chance."
        )
        conversion_delay: exfm.sources.Duration = Field(
            timedelta(days=1), ge=timedelta(0), description="How long after its impression a conversion is known."
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._days, self._rows_per_day = config.days, config.rows_per_day
        self._start_us = int(datetime.combine(config.start, time(), UTC).timestamp()) * 1_000_000
        self._schema = _schema(config)
        self._label = f"synthetic_ads(seed={config.seed})"
        self._time_key, self._click_key, self._conversion_key = (
            key(config.seed, purpose) for purpose in ("time", "click", "conversion")
        )
        self._batch_rows = max(1, min(BATCH_ROWS, BATCH_EVENTS // config.history_length))

    @cached_property
    def _world(self) -> World:
        config = self.config
        return World(
            config.seed,
            users=config.users,
            ads=config.ads,
            advertisers=config.advertisers,
            surfaces=config.surfaces,
            ad_lifetime_us=exfm.sources.microseconds(config.ad_lifetime),
            drift=config.drift,
        )

    @cached_property
    def _histories(self) -> Histories:
        return Histories(self.config.seed, self._world, self.config.history_length)

    @cached_property
    def _truth(self) -> Truth:
        """Creates the truth at the first read, because its probe takes time, and loading an experiment must not."""
        config = self.config
        return Truth(
            self._world,
            self._histories,
            click_rate=config.click_rate,
            conversion_rate=config.conversion_rate,
            logit_std=config.logit_std,
            sequence_signal=config.sequence_signal,
        )

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns the schema of the rows."""
        return self._schema

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the configured days."""
        return exfm.sources.TimeRange(self._start_us, self._start_us + self._days * DAY_US)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Generates a shard's rows of a window; costs no more than these rows."""
        end = self._first_row_at(window.end_us)
        first = self._first_row_at(window.start_us) + shard.index
        step = self._batch_rows * shard.count
        for begin in range(first, end, step):
            row_B = np.arange(begin, min(begin + step, end), shard.count)
            yield exfm.sources.Origin(self._label, begin).mark(self._batch(row_B))

    def _times(self, row_B: Ints) -> Ints:
        """Returns microseconds since the start, (B,): each row has a slice of the day, and a random time in it."""
        day_B, slot_B = np.divmod(row_B, self._rows_per_day)
        begin_B = slot_B * DAY_US // self._rows_per_day
        width_B = (slot_B + 1) * DAY_US // self._rows_per_day - begin_B
        into_B: Ints = (uniform(bits(self._time_key, row_B)) * width_B).astype(np.int64)
        return np.asarray(day_B * DAY_US + begin_B + into_B)

    def _first_row_at(self, time_us: int) -> int:
        """Returns the first row at or after a time."""
        # Rows of earlier slices are before the time, and rows of later slices after: only the slice's row is compared.
        time_us = min(max(time_us - self._start_us, 0), self._days * DAY_US)
        row = time_us * self._rows_per_day // DAY_US
        return row + int(self._times(np.array([row]))[0] < time_us)

    def _batch(self, row_B: Ints) -> pa.RecordBatch:
        time_B = self._times(row_B)
        shown = self._world.impressions(row_B, time_B)
        events = self._histories.before(shown.user, time_B)
        p_click, p_conversion = self._truth.probabilities(shown, events)
        click = uniform(bits(self._click_key, row_B)) < p_click
        # P(conversion | click) is p_conversion / p_click; multiplying avoids a division by 0.
        converts = uniform(bits(self._conversion_key, row_B)) * p_click < p_conversion
        labels = {
            "click": pa.array(click.astype(np.int8)),
            "conversion": pa.array((click & converts).astype(np.int8)),
            "click_oracle": pa.array(p_click),
            "conversion_oracle": pa.array(p_conversion),
        }
        at = pa.array(self._start_us + time_B).cast(pa.timestamp("us", tz="UTC"))
        return pa.RecordBatch.from_pydict(
            {"example_id": pa.array(row_B), "event_time": at, **self._features(shown), **_history(events), **labels}
        )

    def _features(self, shown: Impressions) -> dict[str, pa.Array]:
        world, campaign = self._world, shown.campaign
        count_B = world.topic_count[campaign]
        topics_B3 = world.topics[campaign]
        return {
            "user_id": pa.array(shown.user),
            "country": pa.array(world.country[shown.user]),
            "age_bucket": pa.array(world.age_bucket[shown.user]),
            "ad_id": pa.array(shown.ad_id),
            "advertiser": pa.array(world.advertiser[campaign]),
            "format": pa.array(world.format[campaign]),
            "topics": _lists(count_B, topics_B3[np.arange(topics_B3.shape[1]) < count_B[:, None]]),
            "surface": pa.array(shown.surface),
            "price": pa.array(shown.price.astype(np.float32)),
            "ad_age_hours": pa.array((shown.ad_age / HOUR_US).astype(np.float32)),
        }


def _history(events: Events) -> dict[str, pa.Array]:
    age_hours_E = (events.age_E / HOUR_US).astype(np.float32)
    return {
        "history.ad": _lists(events.length_B, events.ad_id_E),
        "history.topic": _lists(events.length_B, events.topic_E),
        "history.age_hours": _lists(events.length_B, age_hours_E),
    }


def _lists(length_B: Ints, values: Ints | NDArray[np.float32]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(length_B)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _schema(config: SyntheticAds.Config) -> exfm.schema.FeatureSchema:
    ad_rows = AD_ROWS_PER_CAMPAIGN * config.ads
    history = exfm.schema.SequenceFeature(
        name="history",
        max_length=config.history_length,
        times=exfm.schema.EventTimes(column="history.age_hours", unit="h"),
        fields=(
            exfm.schema.SequenceField(name="ad", column="history.ad", rows=ad_rows, table="ad_id"),
            exfm.schema.SequenceField(name="topic", column="history.topic", rows=TOPICS, table="topics", ids="row"),
            exfm.schema.SequenceField(name="age_hours", column="history.age_hours", kind="dense", transform="log1p"),
        ),
    )
    return exfm.schema.FeatureSchema(
        group="user_id",
        domain="surface",
        features=(
            exfm.schema.CategoricalFeature(name="user_id", rows=config.users, ids="row"),
            exfm.schema.CategoricalFeature(name="country", rows=COUNTRIES, ids="row"),
            exfm.schema.CategoricalFeature(name="age_bucket", rows=AGE_BUCKETS, ids="row"),
            exfm.schema.CategoricalFeature(name="ad_id", rows=ad_rows),
            exfm.schema.CategoricalFeature(name="advertiser", rows=config.advertisers, ids="row"),
            exfm.schema.CategoricalFeature(name="format", rows=FORMATS, ids="row"),
            exfm.schema.MultiValuedFeature(name="topics", rows=TOPICS, ids="row"),
            exfm.schema.CategoricalFeature(name="surface", rows=config.surfaces, ids="row"),
            exfm.schema.DenseFeature(name="price", transform="log1p"),
            exfm.schema.DenseFeature(name="ad_age_hours", transform="log1p"),
            history,
        ),
        labels=(
            exfm.schema.Label(name="click", oracle="click_oracle"),
            exfm.schema.Label(name="conversion", delay=config.conversion_delay, oracle="conversion_oracle"),
        ),
    )
