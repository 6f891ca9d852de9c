"""Avazu: the released clicks of ten days on mobile ads as a time-ordered stream."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `avazu`."""
    return [exfm.LazyComponent("avazu", "exfm_plugins.avazu.source:Avazu")]
