"""Exchanges chunks between processes, and gathers batches and rows."""
