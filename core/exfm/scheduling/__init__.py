"""Decides which windows of the stream to run: identity of the run, schedule, late rows."""
