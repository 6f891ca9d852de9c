"""The backbone `rankmixer`, a plugin of exfm."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `rankmixer`."""
    target = "exfm_plugin_rankmixer.backbone:RankmixerBackbone"
    return [exfm.LazyComponent("rankmixer", target)]
