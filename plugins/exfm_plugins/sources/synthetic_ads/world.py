"""Draws the entities of a stream (users, ads, advertisers, surfaces) with visible attributes and hidden latents.

Legend: B impressions, N entities, D latents, R rank of the affinity between users and ads, T rank of
taste, S surfaces. Times are microseconds since the start of the stream; latents are float32 tables, drawn once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exfm_plugins.sources.synthetic_ads.randomness import (
    Bits,
    Floats,
    Ints,
    below,
    bits,
    generator,
    key,
    skewed,
    uniform,
)

DAY_US = 86_400_000_000
COUNTRIES, AGE_BUCKETS, FORMATS, TOPICS = 12, 6, 5, 24
TOPICS_PER_AD = 3
RANK = 2
TASTE_RANK = 2

_Table = NDArray[np.float32]


@dataclass(frozen=True)
class Drifting:
    """Computes latents that rotate with time, each with its speed.

    A latent is ``cos(speed * t) * first + sin(speed * t) * second``. Because both terms are standard normal, the
    distribution over entities is the same at any time, while the values change.
    """

    first_ND: _Table
    second_ND: _Table
    speed_D: Floats

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        groups: Sequence[Ints],
        individual: float,
        width: int,
        period_days: float,
        drift: float,
    ) -> Drifting:
        """Draws latents of entities that resemble the other entities of their groups (country, advertiser, ...).

        Args:
            rng: generator of the draws.
            groups: the group of every entity, (N,), for each grouping.
            individual: the share of the variance that the groups do not determine.
            width: D.
            period_days: days of a full rotation at drift 1, roughly.
            drift: factor of the speed; 0 stands still.
        """

        def standard_normal() -> _Table:
            # The variances of the shares add up to 1.
            total = np.sqrt(individual) * rng.standard_normal((len(groups[0]), width))
            for group in groups:
                total += np.sqrt((1 - individual) / len(groups)) * rng.standard_normal((group.max() + 1, width))[group]
            return np.asarray(total, np.float32)

        speed_D = drift * 2 * np.pi / period_days * rng.uniform(0.7, 1.3, width)
        return cls(standard_normal(), standard_normal(), speed_D)

    def at(self, index_B: Ints, time_B: Ints) -> Floats:
        """Returns the latents of entities, each at its time, (B, D)."""
        angle_BD = (time_B / DAY_US)[:, None] * self.speed_D
        return np.cos(angle_BD) * self.first_ND[index_B] + np.sin(angle_BD) * self.second_ND[index_B]


@dataclass(frozen=True)
class Impressions:
    """Holds the columns of B rows without histories and outcomes. All arrays are (B,)."""

    row: Ints
    time: Ints
    user: Ints
    campaign: Ints
    ad_id: Ints
    ad_age: Ints
    surface: Ints
    price: Floats


class World:
    """Holds the entities of a stream, and computes the impressions of its rows.

    A campaign has a fixed advertiser, topics and format; it replaces its ad regularly, so that new ad ids keep
    appearing. Users and campaigns have ``RANK + 2`` latents: those of the affinity, then clicks, then conversions.
    """

    def __init__(
        self, seed: int, *, users: int, ads: int, advertisers: int, surfaces: int, ad_lifetime_us: int, drift: float
    ) -> None:
        self.users, self.ads, self.surfaces = users, ads, surfaces
        rng = generator(seed, "users")
        self.country = rng.integers(0, COUNTRIES, users)
        self.age_bucket = rng.integers(0, AGE_BUCKETS, users)
        self.user_latents = Drifting.draw(rng, [self.country, self.age_bucket], 0.3, RANK + 2, 90, drift)

        rng = generator(seed, "campaigns")
        self.advertiser = rng.integers(0, advertisers, ads)
        self.format = rng.integers(0, FORMATS, ads)
        self.list_price = np.exp(rng.normal(3.0, 0.8, ads))
        self.topic_count = rng.integers(1, TOPICS_PER_AD + 1, ads)
        offset = rng.integers(1, TOPICS // TOPICS_PER_AD, ads)
        self.topics = (np.arange(ads)[:, None] + offset[:, None] * np.arange(TOPICS_PER_AD)) % TOPICS
        self.campaign_latents = Drifting.draw(rng, [self.advertiser, self.topics[:, 0]], 0.2, RANK + 2, 60, drift)
        # Tastes of campaigns: a history raises the click rate of ads whose tastes are similar to those of its events.
        taste_NT = rng.standard_normal((TOPICS, TASTE_RANK))[self.topics[:, 0]]
        self.taste_NT = (taste_NT + 0.25 * rng.standard_normal((ads, TASTE_RANK))).astype(np.float32)
        self._lifetime = (ad_lifetime_us * rng.uniform(0.5, 1.5, ads)).astype(np.int64)
        self._phase = (self._lifetime * rng.random(ads)).astype(np.int64)

        rng = generator(seed, "surfaces")
        self.surface_latents = Drifting.draw(rng, [np.arange(surfaces)], 0.5, 1, 30, drift)
        self.surface_gate_SR = np.exp(0.4 * rng.standard_normal((surfaces, RANK)))
        self.surface_format = rng.standard_normal((surfaces, FORMATS))
        self.price_sensitivity = rng.normal(1.0, 0.7, AGE_BUCKETS)
        self._keys = {name: key(seed, name) for name in ("user", "campaign", "surface", "price", "creative")}

    def impressions(self, row_B: Ints, time_B: Ints) -> Impressions:
        """Draws the impressions of some rows of the stream, at their times."""
        draw: dict[str, Bits] = {name: bits(key_, row_B) for name, key_ in self._keys.items()}
        user, campaign = skewed(self.users, draw["user"], 1.5), skewed(self.ads, draw["campaign"], 1.5)
        ad_id, ad_age = self.running_ad(campaign, time_B)
        return Impressions(
            row=row_B,
            time=time_B,
            user=user,
            campaign=campaign,
            ad_id=ad_id,
            ad_age=ad_age,
            surface=skewed(self.surfaces, draw["surface"], 1.3),
            price=self.list_price[campaign] * (0.7 + 0.6 * uniform(draw["price"])),
        )

    def running_ad(self, campaign_B: Ints, time_B: Ints) -> tuple[Ints, Ints]:
        """Returns the id of the ad that a campaign runs at a time, and the microseconds it has run, (B,) each."""
        # Histories begin before the stream: adding a year keeps ids positive.
        generation, age = np.divmod(time_B + 365 * DAY_US + self._phase[campaign_B], self._lifetime[campaign_B])
        return generation * self.ads + campaign_B, age

    def campaign_with_topic(self, topic_B: Ints, random_B: Bits) -> Ints:
        """Draws a campaign for each topic, whose first topic it is, (B,)."""
        # The first topic of campaign i is i modulo TOPICS.
        rounds = self.ads // TOPICS
        return below(rounds, random_B, 0, 24) * TOPICS + topic_B

    def creative_quality(self, ad_id_B: Ints) -> Floats:
        """Returns the quality of an ad relative to the other ads of its campaign, (B,), with mean 0 and variance 1."""
        # A uniform variable has variance 1/12.
        return np.asarray((uniform(bits(self._keys["creative"], ad_id_B)) - 0.5) * np.sqrt(12))
