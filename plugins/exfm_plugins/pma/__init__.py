"""PMA: a history summarised by multi-head attention of learned queries over its events (arXiv 1810.00825)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_sequence_encoders() -> list[exfm.LazyComponent]:
    """Offers `pma`."""
    return [exfm.LazyComponent("pma", "exfm_plugins.pma.encoder:PMA")]
