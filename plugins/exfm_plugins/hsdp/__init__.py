"""hsdp: dense layers are sharded inside groups of processes, and the groups are copies of each other."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_parallel_plans() -> list[exfm.LazyComponent]:
    """Offers `hsdp`."""
    return [exfm.LazyComponent("hsdp", "exfm_plugins.hsdp.plan:Hsdp")]
