"""Mean: a history summarised by the average of its events."""
