"""MMoE: experts that all tasks share, mixed by a gate per task (Ma et al., KDD 2018)."""
