"""Parameter sharing: the student takes tables and networks over from the teacher's snapshots."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_transfer_strategies() -> list[exfm.LazyComponent]:
    """Offers `parameter_sharing`."""
    return [exfm.LazyComponent("parameter_sharing", "exfm_plugins.parameter_sharing.strategy:ParameterSharing")]
