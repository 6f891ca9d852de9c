"""Computes the true probabilities of a row's labels from the row and its history.

Legend: B rows, E events of all rows together, R rank of the affinity, T rank of taste, 3 the terms of the logits.
"""

from __future__ import annotations

import numpy as np

from exfm_plugins.sources.synthetic_ads.history import Events, Histories
from exfm_plugins.sources.synthetic_ads.randomness import Floats
from exfm_plugins.sources.synthetic_ads.world import DAY_US, RANK, Impressions, World

PROBE_ROWS = 16_384  # the standard error of a measured mean is then below 1 % of the spread
PROBE_DAYS = 28
PROBE_EVENTS = 1 << 20  # events in memory at once
MEMORY_DAYS = 4.0
# Weight of a history's effect on all ads, relative to its match with an ad. Models learn this effect first.
EAGERNESS = 1.5


class Truth:
    """Computes P(click) and P(conversion) of impressions with their histories.

    The click logit is ``bias + logit_std * (sqrt(1 - q) * static + sqrt(q) * sequence)`` with both terms of mean 0
    and variance 1, so that q (``sequence_signal``) is the share of its variance that comes from the history. The
    static term sums drifting affinities of user and ad, scaled per surface, with the effects of user, ad, surface,
    format, freshness and price. A conversion needs a click; after a click, it has a separate logit.

    Means, variances and biases are measured once, on impressions spread over the first weeks, so that the rates are
    the configured rates there; drift moves them a little later on.
    """

    def __init__(
        self,
        world: World,
        histories: Histories,
        *,
        click_rate: float,
        conversion_rate: float,
        logit_std: float,
        sequence_signal: float,
    ) -> None:
        self._world = world
        self._logit_std, self._sequence_signal = logit_std, sequence_signal
        terms_3B = self._probe(histories)
        spread_3 = terms_3B.std(1, keepdims=True)
        # A term without spread becomes 0 instead of NaN.
        self._mean_3, self._std_3 = terms_3B.mean(1, keepdims=True), np.where(spread_3 > 0, spread_3, 1.0)
        click_B, converted_B = self._logits(terms_3B)
        self._click_bias = _bias_for(click_rate, click_B, np.ones_like(click_B))
        self._conversion_bias = _bias_for(conversion_rate, converted_B, _sigmoid(click_B + self._click_bias))

    def _probe(self, histories: Histories) -> Floats:
        """Returns the terms of impressions spread over the first weeks."""
        # In slices, because long histories take memory.
        time_B = np.linspace(0, PROBE_DAYS * DAY_US, PROBE_ROWS).astype(np.int64)
        slices = np.array_split(np.arange(PROBE_ROWS), -(-PROBE_ROWS * histories.longest // PROBE_EVENTS))
        terms = []
        for row_B in slices:
            shown = self._world.impressions(row_B, time_B[row_B])
            terms.append(self._terms(shown, histories.before(shown.user, time_B[row_B])))
        return np.concatenate(terms, axis=1)

    def probabilities(self, shown: Impressions, events: Events) -> tuple[Floats, Floats]:
        """Returns P(click) and P(conversion), which is at most P(click), (B,) each."""
        click_B, converted_B = self._logits(self._terms(shown, events))
        p_click_B = _sigmoid(click_B + self._click_bias)
        return p_click_B, p_click_B * _sigmoid(converted_B + self._conversion_bias)

    def _logits(self, terms_3B: Floats) -> tuple[Floats, Floats]:
        static_B, sequence_B, purchase_B = (terms_3B - self._mean_3) / self._std_3
        click_B = np.sqrt(1 - self._sequence_signal) * static_B + np.sqrt(self._sequence_signal) * sequence_B
        # 0.8^2 + 0.6^2 = 1: the conversion's logit has variance 1 too, if the terms are independent.
        return self._logit_std * click_B, self._logit_std * (0.8 * purchase_B + 0.6 * click_B)

    def _terms(self, shown: Impressions, events: Events) -> Floats:
        world = self._world
        user = world.user_latents.at(shown.user, shown.time)
        campaign = world.campaign_latents.at(shown.campaign, shown.time)
        gate_BR = world.surface_gate_SR[shown.surface]
        affinity_B = (user[:, :RANK] * gate_BR * campaign[:, :RANK]).sum(1) / np.sqrt(RANK)
        log_price_B = np.log(shown.price) - 3.0
        dearness_B = world.price_sensitivity[world.age_bucket[shown.user]] * log_price_B
        static_B = (
            0.6 * affinity_B
            + 0.6 * user[:, RANK]
            + 0.6 * campaign[:, RANK]
            + 0.3 * world.creative_quality(shown.ad_id)
            + 0.5 * world.surface_latents.at(shown.surface, shown.time)[:, 0]
            + 0.5 * world.surface_format[shown.surface, world.format[shown.campaign]]
            - 0.5 * np.log1p(shown.ad_age / DAY_US)
            - 0.4 * dearness_B
        )
        purchase_B = 0.7 * user[:, RANK + 1] + 0.7 * campaign[:, RANK + 1] - dearness_B
        return np.stack([static_B, self._attraction(shown, events), purchase_B])

    def _attraction(self, shown: Impressions, events: Events) -> Floats:
        """Returns how well the ad matches the user's history, with higher weights for recent events, (B,)."""
        weight_E = np.exp(events.age_E / (-MEMORY_DAYS * DAY_US))
        taste_NT = self._world.taste_NT
        query_BT = taste_NT[shown.campaign] + np.float32(EAGERNESS)
        alike_E = (taste_NT[events.campaign_E] * query_BT[events.row_E]).sum(1)
        rows = len(shown.row)
        total_B = np.bincount(events.row_E, weight_E * alike_E, minlength=rows)
        # The 0.5 shrinks the mean of few or old events towards 0.
        return np.asarray(total_B / (np.bincount(events.row_E, weight_E, minlength=rows) + 0.5))


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def _bias_for(rate: float, logit_B: Floats, weight_B: Floats) -> float:
    """Finds, by bisection, the bias with which the weighted mean of the probabilities is the rate."""
    low, high = -40.0, 40.0
    # 60 halvings of 80 are below the spacing of float64 around a bias.
    for _ in range(60):
        middle = (low + high) / 2
        too_high = np.average(_sigmoid(logit_B + middle), weights=weight_B) > rate
        if too_high:
            high = middle
        else:
            low = middle
    return (low + high) / 2
