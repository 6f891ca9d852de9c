"""Avazu: the released clicks of ten days on mobile ads as a time-ordered stream."""
