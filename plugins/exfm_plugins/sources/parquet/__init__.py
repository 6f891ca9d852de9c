"""Registers the data source `parquet`: any time-ordered Parquet files, with the experiment's schema."""
