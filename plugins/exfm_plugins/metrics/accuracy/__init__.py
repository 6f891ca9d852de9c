"""The share of examples whose most probable class is the true class."""
