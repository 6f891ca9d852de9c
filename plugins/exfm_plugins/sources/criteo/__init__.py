"""Criteo: the released display ads of seven days, and of the 24 days of the click logs, as a time-ordered stream."""
