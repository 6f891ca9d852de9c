"""The share of pairs of examples that predictions rank as labels do."""
