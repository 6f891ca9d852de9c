"""LoopFM: the sequence of the teacher's states of a user or an item as an input token."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_teacher_inputs() -> list[exfm.LazyComponent]:
    """Offers `loopfm`."""
    return [exfm.LazyComponent("loopfm", "exfm_plugins.loopfm.model:LoopFM")]
