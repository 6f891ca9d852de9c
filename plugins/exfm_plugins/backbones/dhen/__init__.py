"""DHEN: different interaction modules side by side, in layers (arXiv 2203.11014)."""
