"""Redis Streams: a log of events that has no end."""
