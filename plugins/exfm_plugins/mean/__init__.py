"""Mean: a history summarised by the average of its events."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_sequence_encoders() -> list[exfm.LazyComponent]:
    """Offers `mean`."""
    return [exfm.LazyComponent("mean", "exfm_plugins.mean.encoder:Mean")]
