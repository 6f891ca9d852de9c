"""DHEN: different interaction modules side by side, in layers (arXiv 2203.11014)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `dhen`."""
    return [exfm.LazyComponent("dhen", "exfm_plugins.dhen.model:DHEN")]
