"""Searches settings of a model at a fixed serving cost, with an equal budget for the models that it is compared to."""
