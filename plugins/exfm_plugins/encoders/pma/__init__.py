"""PMA: a history summarised by multi-head attention of learned queries over its events (arXiv 1810.00825)."""
