"""Discovers plugins by their hooks, and registers their components."""
