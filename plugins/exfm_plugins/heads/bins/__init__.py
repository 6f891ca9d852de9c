"""Bins: a distribution over fixed values, and its expected value."""
