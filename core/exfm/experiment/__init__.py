"""Experiments: runs and sweeps, above training, evaluation and reporting."""
