"""DIN: a history summarised by attention of the candidate item over its events (arXiv 1706.06978)."""
