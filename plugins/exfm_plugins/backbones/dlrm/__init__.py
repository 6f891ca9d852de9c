"""DLRM: pairwise dot products of all tokens, and an MLP over them (arXiv 1906.00091)."""
