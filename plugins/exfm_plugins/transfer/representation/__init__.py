"""Representation: the student's trunk learns what the teacher's embedding says of an example."""
