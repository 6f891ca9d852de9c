"""Squared error: a number is predicted by its expected value."""
