"""Amazon reviews: the released JSON lines as a time-ordered stream."""
