"""Latest state: the teacher's newest state of a user or an item as an input token."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_teacher_inputs() -> list[exfm.LazyComponent]:
    """Offers `latest_state`."""
    return [exfm.LazyComponent("latest_state", "exfm_plugins.latest_state.model:LatestState")]
