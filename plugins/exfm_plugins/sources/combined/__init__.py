"""Registers the data source `combined`: several sources as a single stream, each with its schema."""
