"""The figures of a run in experiment trackers: read from what is committed, so that training knows nothing of it."""
