"""Wukong: stacked factorization machines (arXiv 2403.02545)."""
