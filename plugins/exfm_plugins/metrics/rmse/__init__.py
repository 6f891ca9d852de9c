"""The root of the mean squared error."""
