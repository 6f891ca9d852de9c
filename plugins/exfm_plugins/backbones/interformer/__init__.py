"""InterFormer: tokens and sequences that learn from each other, layer by layer (arXiv 2411.09852)."""
