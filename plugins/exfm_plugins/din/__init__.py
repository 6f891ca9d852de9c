"""DIN: a history summarised by attention of the candidate item over its events (arXiv 1706.06978)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_sequence_encoders() -> list[exfm.LazyComponent]:
    """Offers `din`."""
    return [exfm.LazyComponent("din", "exfm_plugins.din.encoder:DIN")]
