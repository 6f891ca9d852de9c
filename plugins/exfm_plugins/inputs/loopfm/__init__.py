"""LoopFM: the sequence of the teacher's states of a user or an item as an input token."""
