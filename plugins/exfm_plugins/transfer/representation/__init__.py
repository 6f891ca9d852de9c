"""Representation: the student's trunk learns the teacher's embedding of an example."""
