"""Compact features: what the teacher knows of users and items, inside the tables the student has anyway."""
