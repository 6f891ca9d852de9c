"""Parquet: any time-ordered Parquet files as a stream, with the schema given in the experiment file."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `parquet`."""
    return [exfm.LazyComponent("parquet", "exfm_plugins.parquet.source:Parquet")]
