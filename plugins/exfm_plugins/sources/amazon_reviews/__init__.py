"""Registers the data source `amazon_reviews`: the released JSON lines as a time-ordered stream."""
