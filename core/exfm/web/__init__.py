"""Serves a read-only page that watches runs, by a single process with the server of the standard library."""
