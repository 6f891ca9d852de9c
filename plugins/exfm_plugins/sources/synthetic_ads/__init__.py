"""Registers the data source `synthetic_ads`: drifting ad impressions with their true probabilities."""
