"""Pair embedding: the teacher's embedding of the example, user and candidate together, as an input token."""
