"""Offers transfer strategies, which transfer a teacher's knowledge to a student."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_transfer_strategies() -> list[exfm.LazyComponent]:
    """Offers the built-in transfer strategies."""
    return [
        exfm.LazyComponent("auxiliary_head", "exfm_plugins.transfer.auxiliary_head.strategy:AuxiliaryHead"),
        exfm.LazyComponent("compact_features", "exfm_plugins.transfer.compact_features.strategy:CompactFeatures"),
        exfm.LazyComponent("direct", "exfm_plugins.transfer.direct.strategy:Direct"),
        exfm.LazyComponent("parameter_sharing", "exfm_plugins.transfer.parameter_sharing.strategy:ParameterSharing"),
        exfm.LazyComponent("representation", "exfm_plugins.transfer.representation.strategy:Representation"),
        exfm.LazyComponent("student_adapter", "exfm_plugins.transfer.student_adapter.strategy:StudentAdapter"),
    ]
