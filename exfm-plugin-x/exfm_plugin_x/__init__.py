"""The data source `x`, a plugin of exfm."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `x`."""
    target = "exfm_plugin_x.source:XSource"
    return [exfm.LazyComponent("x", target)]
