"""The share of examples whose true class is among the most probable."""
