"""Sequence encoders: a history to summary tokens."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_sequence_encoders() -> list[exfm.LazyComponent]:
    """Offers the built-in encoders."""
    return [
        exfm.LazyComponent("din", "exfm_plugins.encoders.din.encoder:DIN"),
        exfm.LazyComponent("hstu", "exfm_plugins.encoders.hstu.encoder:HSTU"),
        exfm.LazyComponent("mean", "exfm_plugins.encoders.mean.encoder:Mean"),
        exfm.LazyComponent("pma", "exfm_plugins.encoders.pma.encoder:PMA"),
        exfm.LazyComponent("pyramid", "exfm_plugins.encoders.pyramid.encoder:Pyramid"),
        exfm.LazyComponent("transformer", "exfm_plugins.encoders.transformer.encoder:Transformer"),
    ]
