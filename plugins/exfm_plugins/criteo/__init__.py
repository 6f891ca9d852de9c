"""Criteo: the released display ads of seven days, and of the 24 days of the click logs, as a time-ordered stream."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `criteo`."""
    return [exfm.LazyComponent("criteo", "exfm_plugins.criteo.source:Criteo")]
