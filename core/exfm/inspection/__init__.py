"""Looks at a log of Parquet files, and guesses the schema and the models of an experiment over it."""
