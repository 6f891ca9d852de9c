"""Reads streams of Parquet files by row group: their footers, the row groups of a window, and their rows."""
