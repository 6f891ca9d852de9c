"""HSTU: a history read by pointwise aggregated attention (arXiv 2402.17152)."""
