"""Who and what there is: users, ads, advertisers and surfaces, with attributes that are seen and latents that are not.

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
    """Latents that turn with time, each at a speed of its own.

    A latent is ``cos(speed * t) * first + sin(speed * t) * second``: with both parts standard normal, its
    distribution over entities is the same at any time, years ahead too, while the values themselves move on.
    """

    first_ND: _Table
    second_ND: _Table
    speed_D: Floats

    @classmethod
    def draw(
        cls, rng: np.random.Generator, groups: Sequence[Ints], own: float, width: int, period_days: float, drift: float
    ) -> Drifting:
        """Latents of entities that take after the groups they belong to (country, advertiser, ...).

        Args:
            rng: where they are drawn from.
            groups: for each way of grouping, the group of every entity, (N,).
            own: the share of the variance that is the entity's own.
            width: D.
            period_days: days of a full turn at drift 1, roughly.
            drift: factor on the speed; 0 stands still.
        """

        def part() -> _Table:
            total = np.sqrt(own) * rng.standard_normal((len(groups[0]), width))
            for group in groups:
                total += np.sqrt((1 - own) / len(groups)) * rng.standard_normal((group.max() + 1, width))[group]
            return np.asarray(total, np.float32)

        speed_D = drift * 2 * np.pi / period_days * rng.uniform(0.7, 1.3, width)
        return cls(part(), part(), speed_D)

    def at(self, index_B: Ints, time_B: Ints) -> Floats:
        """Latents of the indexed entities, each at its own time, (B, D)."""
        angle_BD = (time_B / DAY_US)[:, None] * self.speed_D
        return np.cos(angle_BD) * self.first_ND[index_B] + np.sin(angle_BD) * self.second_ND[index_B]


@dataclass(frozen=True)
class Impressions:
    """Candidate ads shown to users: everything of a row but its history and its outcome. All arrays are (B,)."""

    row: Ints
    time: Ints
    user: Ints
    campaign: Ints
    ad_id: Ints
    ad_age: Ints
    surface: Ints
    price: Floats


class World:
    """The entities of a stream.

    A campaign belongs to an advertiser and has topics and a format for good; it runs one ad after the other, so that
    new ad ids never stop coming. Users and campaigns have latents of width ``RANK + 2``: the affinity's, one for
    clicks, one for conversions.
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
        # what an event in a user's history says of the next ad: its like attracts
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
        """What is shown to whom in the given rows of the stream, at the given times."""
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
        """The id of the ad that a campaign runs at a time, and how long it has run (microseconds), (B,) each."""
        # a year of head start keeps ids positive for histories that begin before the stream does
        generation, age = np.divmod(time_B + 365 * DAY_US + self._phase[campaign_B], self._lifetime[campaign_B])
        return generation * self.ads + campaign_B, age

    def campaign_with_topic(self, topic_B: Ints, random_B: Bits) -> Ints:
        """A campaign whose first topic is the given one, (B,)."""
        rounds = self.ads // TOPICS
        return below(rounds, random_B, 0, 24) * TOPICS + topic_B

    def creative_quality(self, ad_id_B: Ints) -> Floats:
        """How good one ad is beside its campaign's others, (B,): mean 0, variance 1."""
        return np.asarray((uniform(bits(self._keys["creative"], ad_id_B)) - 0.5) * np.sqrt(12))
