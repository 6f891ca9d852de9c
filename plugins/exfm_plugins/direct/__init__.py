"""Direct: standard knowledge distillation on the serving heads (arXiv 2502.17494)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_transfer_strategies() -> list[exfm.LazyComponent]:
    """Offers `direct`."""
    return [exfm.LazyComponent("direct", "exfm_plugins.direct.strategy:Direct")]
