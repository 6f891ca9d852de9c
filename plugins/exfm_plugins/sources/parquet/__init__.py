"""Parquet: any time-ordered Parquet files as a stream, with the schema given in the experiment file."""
