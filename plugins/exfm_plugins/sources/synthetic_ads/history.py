"""Generates the histories of users: an endless event process per user, whose newest events a row shows.

Legend: B rows, E events of all rows together. Times are microseconds since the start of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exfm_plugins.sources.synthetic_ads.randomness import Bits, Ints, below, bits, generator, key
from exfm_plugins.sources.synthetic_ads.world import DAY_US, TOPICS, World

SPAN_US = 14 * DAY_US  # the period over which the events of a history are spread
EVENTS_PER_FOCUS = 6
FOCUSED = 0.7  # probability that an event has the topic of its focus


@dataclass(frozen=True)
class Events:
    """Holds the concatenated histories of B rows, oldest event first."""

    length_B: Ints
    row_E: Ints
    campaign_E: Ints
    topic_E: Ints
    ad_id_E: Ints
    age_E: Ints


class Histories:
    """Computes histories as a pure function of user and time.

    A user's time is divided into slots, whose width differs between users, with an event at a random time in each. A
    row shows events of completed slots, so all of them are strictly earlier than the row, and a later row shows the
    same events at a greater age. During ``EVENTS_PER_FOCUS`` successive events a user prefers a topic, and most of
    these events have that topic.

    Lengths differ between users, from 0 to ``longest``, and average a third of it.
    """

    def __init__(self, seed: int, world: World, longest: int) -> None:
        self._world = world
        self.longest = longest
        rng = generator(seed, "history")
        # Log-uniform from half an event to twice the longest history: some users have no events, others are truncated.
        events = np.exp(rng.uniform(np.log(0.5), np.log(2.0 * longest), world.users))
        self._length = np.minimum(events, longest).astype(np.int64)
        self._slot = (SPAN_US / events).astype(np.int64)
        # Without a random phase, the slots of all users would begin together.
        self._phase = (self._slot * rng.random(world.users)).astype(np.int64)
        self._event_key, self._focus_key = key(seed, "event"), key(seed, "focus")

    def before(self, user_B: Ints, time_B: Ints) -> Events:
        """Returns the newest events of each user strictly before each time."""
        length_B = self._length[user_B]
        row_E = np.repeat(np.arange(len(user_B)), length_B)
        ends_B = np.cumsum(length_B)
        slot_B, phase_B = self._slot[user_B], self._phase[user_B]
        # Index of a row's first event, less the row's offset in E: adding the position in E gives the event's index.
        first_B = (time_B + phase_B) // slot_B - ends_B
        index_E = np.arange(len(row_E)) + first_B[row_E]

        user_E, slot_E = user_B[row_E], slot_B[row_E]
        # The draws below use disjoint bit ranges of these 64 bits, so that they are independent.
        random_E = bits(bits(self._event_key, user_B)[row_E], index_E)
        started_E = index_E * slot_E - phase_B[row_E] + below(slot_E, random_E, 0, 20)
        topic_E = self._topics(user_E, index_E, random_E)
        campaign_E = self._world.campaign_with_topic(topic_E, random_E >> np.uint64(40))
        ad_id_E, _ = self._world.running_ad(campaign_E, started_E)
        return Events(length_B, row_E, campaign_E, topic_E, ad_id_E, time_B[row_E] - started_E)

    def _topics(self, user_E: Ints, index_E: Ints, random_E: Bits) -> Ints:
        focus_E = bits(bits(self._focus_key, user_E), index_E // EVENTS_PER_FOCUS)
        focused_E = below(1 << 10, random_E, 20, 10) < FOCUSED * (1 << 10)
        return np.where(focused_E, below(TOPICS, focus_E, 0, 20), below(TOPICS, random_E, 30, 10))
