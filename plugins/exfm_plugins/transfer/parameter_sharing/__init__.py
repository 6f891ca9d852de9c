"""Parameter sharing: the student takes tables and networks over from the teacher's snapshots."""
