"""Measures a finished run, and decides on the cause why transfer pays or does not."""
