"""Parallel plans: how a model is placed on processes."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_parallel_plans() -> list[exfm.LazyComponent]:
    """Offers the built-in parallel plans."""
    return [
        exfm.LazyComponent("ddp", "exfm_plugins.parallel.ddp.plan:Ddp"),
        exfm.LazyComponent("hsdp", "exfm_plugins.parallel.hsdp.plan:Hsdp"),
        exfm.LazyComponent("hsdp_2d", "exfm_plugins.parallel.hsdp_2d.plan:Hsdp2d"),
        exfm.LazyComponent("single", "exfm_plugins.parallel.single.plan:Single"),
    ]
