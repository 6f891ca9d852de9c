"""Registers the data source `joined`: impressions, joined to the logs of their labels, features and histories."""
