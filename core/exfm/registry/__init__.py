"""Hooks, discovery of plugins, and the registry of their components."""
