"""KuaiVideo: the released interactions with micro-videos as a time-ordered stream."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `kuaivideo`."""
    return [exfm.LazyComponent("kuaivideo", "exfm_plugins.kuaivideo.source:KuaiVideo")]
