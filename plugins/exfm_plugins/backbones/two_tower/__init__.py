"""Two towers: one vector of the user, one of the item, and their elementwise product, for retrieval."""
