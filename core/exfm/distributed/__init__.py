"""Several processes: chunks are exchanged, batches and rows are gathered."""
