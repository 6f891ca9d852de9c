"""Student adapter: the teacher's predictions, corrected by fresh labels before they are learned (arXiv 2502.17494)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_transfer_strategies() -> list[exfm.LazyComponent]:
    """Offers `student_adapter`."""
    return [exfm.LazyComponent("student_adapter", "exfm_plugins.student_adapter.strategy:StudentAdapter")]
