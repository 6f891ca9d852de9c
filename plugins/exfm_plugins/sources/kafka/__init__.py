"""Registers the data source `kafka`: a topic of events in many partitions."""
