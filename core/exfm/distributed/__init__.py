"""Exchanges chunks between processes, gathers batches, and writes the rows of each process."""
