"""`latest_state`: stored states of a teacher as input tokens."""

from __future__ import annotations

import exfm_plugins.inputs
from exfm.testing import TeacherInputTests
from exfm_plugins.inputs.latest_state.model import LatestState


class TestLatestState(TeacherInputTests):
    component = LatestState
    plugin = exfm_plugins.inputs
