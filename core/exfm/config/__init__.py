"""Loads and checks the experiment file, with errors that name file and key path."""
