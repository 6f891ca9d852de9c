"""Redis Streams: a log of events that has no end."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_data_sources() -> list[exfm.LazyComponent]:
    """Offers `redis_stream`."""
    return [exfm.LazyComponent("redis_stream", "exfm_plugins.redis_stream.source:RedisStream")]
