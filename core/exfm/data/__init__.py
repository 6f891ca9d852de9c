"""Turns Arrow record batches into model batches: validation, hashing, jagged tensors, prefetch."""
