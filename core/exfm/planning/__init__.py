"""What a run would take on processes that need not exist: memory, traffic, and what does not fit."""
