"""Why transfer pays or does not: measures of a finished run, and the cause that they point to."""
