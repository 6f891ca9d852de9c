"""DLRM: pairwise dot products of all tokens, and an MLP over them (arXiv 1906.00091)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `dlrm`."""
    return [exfm.LazyComponent("dlrm", "exfm_plugins.dlrm.model:DLRM")]
