"""Registers the data source `criteo`: the released display ads of 7 days, or of 24 days, as a time-ordered stream."""
