"""Keeps the books of a run: the sums of each window, its position and time, and the commit of its windows."""
