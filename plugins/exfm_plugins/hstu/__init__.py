"""HSTU: a history read by pointwise aggregated attention (arXiv 2402.17152)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_sequence_encoders() -> list[exfm.LazyComponent]:
    """Offers `hstu`."""
    return [exfm.LazyComponent("hstu", "exfm_plugins.hstu.encoder:HSTU")]
