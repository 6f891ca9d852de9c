"""The mean absolute error."""
