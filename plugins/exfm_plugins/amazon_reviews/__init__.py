"""Amazon reviews: the released JSON lines as a time-ordered stream."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `amazon_reviews`."""
    return [exfm.LazyComponent("amazon_reviews", "exfm_plugins.amazon_reviews.source:AmazonReviews")]
