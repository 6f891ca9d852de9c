"""Synthetic ads: a drifting stream of ad impressions whose true probabilities are known."""
