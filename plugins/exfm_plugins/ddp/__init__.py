"""ddp: every process keeps the whole model."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_parallel_plans() -> list[exfm.LazyComponent]:
    """Offers `ddp`."""
    return [exfm.LazyComponent("ddp", "exfm_plugins.ddp.plan:Ddp")]
