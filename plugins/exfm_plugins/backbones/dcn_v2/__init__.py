"""DCN-V2: explicit crosses of bounded degree, and an MLP (arXiv 2008.13535)."""
