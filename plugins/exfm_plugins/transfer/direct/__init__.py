"""Direct: standard knowledge distillation on the serving heads (arXiv 2502.17494)."""
