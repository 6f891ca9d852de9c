"""DeepFM: a factorization machine and an MLP over the same tokens (arXiv 1703.04247)."""
