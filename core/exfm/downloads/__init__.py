"""Downloads public logs: the catalogue of all data sources, transfers that resume, checksums and unpacking."""
