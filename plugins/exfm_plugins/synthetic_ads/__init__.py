"""Synthetic ads: a drifting stream of ad impressions whose true probabilities are known."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `synthetic_ads`."""
    return [exfm.LazyComponent("synthetic_ads", "exfm_plugins.synthetic_ads.source:SyntheticAds")]
