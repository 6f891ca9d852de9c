"""Wukong: stacked factorization machines (arXiv 2403.02545)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `wukong`."""
    return [exfm.LazyComponent("wukong", "exfm_plugins.wukong.model:Wukong")]
