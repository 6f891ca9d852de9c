"""Pyramid: a long history read at several time scales, in fewer tokens from level to level."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_sequence_encoders() -> list[exfm.LazyComponent]:
    """Offers `pyramid`."""
    return [exfm.LazyComponent("pyramid", "exfm_plugins.pyramid.encoder:Pyramid")]


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `pyramid`."""
    return [exfm.LazyComponent("pyramid", "exfm_plugins.pyramid.backbone:PyramidBackbone")]
