"""single: one process, one device."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_parallel_plans() -> list[exfm.LazyComponent]:
    """Offers `single`."""
    return [exfm.LazyComponent("single", "exfm_plugins.single.plan:Single")]
