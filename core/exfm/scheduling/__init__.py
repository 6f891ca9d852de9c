"""Which windows of the stream are to be done: the run's identity, the schedule, rows that come late."""
