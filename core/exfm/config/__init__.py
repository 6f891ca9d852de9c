"""The experiment file: typed, checked, with errors that name the place."""
