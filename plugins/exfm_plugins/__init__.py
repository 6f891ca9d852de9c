"""The built-in plugins: each folder could be a distribution of its own."""
