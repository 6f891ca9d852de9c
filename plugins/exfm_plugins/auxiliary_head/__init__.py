"""Auxiliary head: distillation through heads of its own on the shared trunk (arXiv 2502.17494)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_transfer_strategies() -> list[exfm.LazyComponent]:
    """Offers `auxiliary_head`."""
    return [exfm.LazyComponent("auxiliary_head", "exfm_plugins.auxiliary_head.strategy:AuxiliaryHead")]
