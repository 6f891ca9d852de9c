"""Huber: a squared error that grows linearly from a distance on (Huber 1964)."""
