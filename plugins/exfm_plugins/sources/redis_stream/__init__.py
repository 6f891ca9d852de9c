"""Registers the data source `redis_stream`: an unbounded log of events."""
