"""Copies the figures of a run into experiment trackers, from committed files only, because training must not wait."""
