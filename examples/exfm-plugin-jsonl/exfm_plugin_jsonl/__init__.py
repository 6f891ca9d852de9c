"""The data source `jsonl`, a plugin of exfm."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `jsonl`."""
    target = "exfm_plugin_jsonl.source:JsonlSource"
    return [exfm.LazyComponent("jsonl", target)]
