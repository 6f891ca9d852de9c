"""Hugging Face datasets: any table of the Hub or of a disk as a time-ordered stream."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `huggingface`."""
    return [exfm.LazyComponent("huggingface", "exfm_plugins.huggingface.source:HuggingFace")]
