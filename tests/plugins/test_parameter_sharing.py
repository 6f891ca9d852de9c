"""`parameter_sharing`: parts of the teacher inside the student."""

from __future__ import annotations

import exfm_plugins.transfer
from exfm.testing import ParameterStrategyTests
from exfm_plugins.transfer.parameter_sharing.strategy import ParameterSharing


class TestParameterSharing(ParameterStrategyTests):
    component = ParameterSharing
    plugin = exfm_plugins.transfer
    configs = (
        {"parts": {"table/items": "added", "table/shops": "frozen", "sequence_encoder/history": "fine_tuned"}},
        {"parts": {"table/items": "projected", "table/shops": "copied"}, "scale": 0.5},
        {"parts": {"table/items": "fine_tuned", "sequence_encoder/history": "frozen"}, "slice": True},
    )
    teaches_trunk = False
