"""Serves an export over HTTP."""
