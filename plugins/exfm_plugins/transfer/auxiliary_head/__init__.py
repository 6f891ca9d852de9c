"""Auxiliary head: distillation through separate heads on the shared trunk (arXiv 2502.17494)."""
