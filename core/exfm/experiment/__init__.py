"""Runs experiments and sweeps, above training, evaluation and reporting."""
