"""Registers the data source `avazu`: the released clicks on mobile ads of ten days as a time-ordered stream."""
