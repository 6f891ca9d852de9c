"""GEM: sequences and tokens learned in turns, domain by domain, after Meta's ads foundation model."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `gem`."""
    return [exfm.LazyComponent("gem", "exfm_plugins.gem.model:GEM")]
