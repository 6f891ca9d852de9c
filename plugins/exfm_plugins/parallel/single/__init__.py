"""single: one process, one device."""
