"""MMoE: experts that all tasks share, mixed by a gate per task (Ma et al., KDD 2018)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `mmoe`."""
    return [exfm.LazyComponent("mmoe", "exfm_plugins.mmoe.model:MMoE")]
