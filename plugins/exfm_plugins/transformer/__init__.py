"""Transformer: a history read by causal self-attention with rotary positions."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_sequence_encoders() -> list[exfm.LazyComponent]:
    """Offers `transformer`."""
    return [exfm.LazyComponent("transformer", "exfm_plugins.transformer.encoder:Transformer")]
