"""What a user did before: an endless process per user, of which a row shows the newest part.

Legend: B rows, E events of all rows together. Times are microseconds since the start of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exfm_plugins.sources.synthetic_ads.randomness import Bits, Ints, below, bits, generator, key
from exfm_plugins.sources.synthetic_ads.world import DAY_US, TOPICS, World

SPAN_US = 14 * DAY_US
EVENTS_PER_FOCUS = 6
FOCUSED = 0.7


@dataclass(frozen=True)
class Events:
    """Histories of B rows, one after the other, oldest event first."""

    length_B: Ints
    row_E: Ints
    campaign_E: Ints
    topic_E: Ints
    ad_id_E: Ints
    age_E: Ints


class Histories:
    """Histories as a pure function of user and time.

    A user's time is cut into slots of the user's own width, with one event somewhere in each. A row shows events of
    slots that are over, so all of them lie strictly before it, and a later row shows the same ones, older. For a run
    of ``EVENTS_PER_FOCUS`` events a user is after one topic; most of these events have it.

    Lengths differ between users, from none to ``longest``, and average a third of it.
    """

    def __init__(self, seed: int, world: World, longest: int) -> None:
        self._world = world
        self.longest = longest
        rng = generator(seed, "history")
        # log-uniform from half an event to twice the longest history: some users have none, some are cut
        wanted = np.exp(rng.uniform(np.log(0.5), np.log(2.0 * longest), world.users))
        self._length = np.minimum(wanted, longest).astype(np.int64)
        self._slot = (SPAN_US / wanted).astype(np.int64)
        self._phase = (self._slot * rng.random(world.users)).astype(np.int64)
        self._event_key, self._focus_key = key(seed, "event"), key(seed, "focus")

    def before(self, user_B: Ints, time_B: Ints) -> Events:
        """The newest events of each user strictly before each time."""
        length_B = self._length[user_B]
        row_E = np.repeat(np.arange(len(user_B)), length_B)
        ends_B = np.cumsum(length_B)
        slot_B, phase_B = self._slot[user_B], self._phase[user_B]
        first_B = (time_B + phase_B) // slot_B - ends_B
        index_E = np.arange(len(row_E)) + first_B[row_E]

        user_E, slot_E = user_B[row_E], slot_B[row_E]
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
