"""Watches a run from its folder: how far each model is, its problems, and how its figures move. Needs no torch."""
