"""PLE: experts of each task beside shared ones, level by level (Tang et al., RecSys 2020)."""
