"""Gives Python users the results of a run as objects: figures as frames and plots, models as modules."""
