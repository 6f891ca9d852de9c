"""Plans memory and traffic of a run on processes that need not exist."""
