"""Registers the data source `delta`: a Delta table, with the experiment's schema."""
