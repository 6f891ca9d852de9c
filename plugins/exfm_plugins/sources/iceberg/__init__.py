"""Registers the data source `iceberg`: an Apache Iceberg table, with the experiment's schema."""
