"""The contracts a plugin can fulfil, and the types in their signatures."""
