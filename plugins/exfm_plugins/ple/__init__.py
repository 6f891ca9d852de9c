"""PLE: experts of each task beside shared ones, level by level (Tang et al., RecSys 2020)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `ple`."""
    return [exfm.LazyComponent("ple", "exfm_plugins.ple.model:PLE")]
