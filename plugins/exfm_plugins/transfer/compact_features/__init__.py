"""Compact features: the teacher's states of users and items, folded into the student's tables."""
