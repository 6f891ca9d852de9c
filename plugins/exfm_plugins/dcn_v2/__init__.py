"""DCN-V2: explicit crosses of bounded degree, and an MLP (arXiv 2008.13535)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `dcn_v2`."""
    return [exfm.LazyComponent("dcn_v2", "exfm_plugins.dcn_v2.model:DCNV2")]
