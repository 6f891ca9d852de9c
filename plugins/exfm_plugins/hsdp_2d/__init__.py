"""hsdp_2d: dense layers as in `hsdp`, tables sharded inside groups of processes and averaged over the groups."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_parallel_plans() -> list[exfm.LazyComponent]:
    """Offers `hsdp_2d`."""
    return [exfm.LazyComponent("hsdp_2d", "exfm_plugins.hsdp_2d.plan:Hsdp2d")]
