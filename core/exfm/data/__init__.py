"""Arrow record batches to model batches: validation, hashing, jagged tensors, prefetch."""
