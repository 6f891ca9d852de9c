"""MovieLens: the released files of 1M, 100k and latest as a time-ordered stream."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `movielens`."""
    return [exfm.LazyComponent("movielens", "exfm_plugins.movielens.source:MovieLens")]
