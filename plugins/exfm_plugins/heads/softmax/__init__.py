"""Softmax: a probability per class."""
