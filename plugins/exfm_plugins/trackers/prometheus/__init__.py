"""A page of figures for Prometheus."""
