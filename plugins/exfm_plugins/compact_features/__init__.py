"""Compact features: what the teacher knows of users and items, inside the tables the student has anyway."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_transfer_strategies() -> list[exfm.LazyComponent]:
    """Offers `compact_features`."""
    return [exfm.LazyComponent("compact_features", "exfm_plugins.compact_features.strategy:CompactFeatures")]
