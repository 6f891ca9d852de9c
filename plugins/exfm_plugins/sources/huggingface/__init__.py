"""Registers the data source `huggingface`: any table of the Hub or of a disk as a time-ordered stream."""
