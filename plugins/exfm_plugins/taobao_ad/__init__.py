"""Taobao display ads (Ali): the released impressions of eight days with 22 days of shopping behaviour."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `taobao_ad`."""
    return [exfm.LazyComponent("taobao_ad", "exfm_plugins.taobao_ad.source:TaobaoAd")]
