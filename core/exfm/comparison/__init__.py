"""Compares runs: their configs, their figures, and the predictions that they have in common."""
