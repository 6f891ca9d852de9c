"""InterFormer: tokens and sequences that learn from each other, layer by layer (arXiv 2411.09852)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `interformer`."""
    return [exfm.LazyComponent("interformer", "exfm_plugins.interformer.model:InterFormer")]
