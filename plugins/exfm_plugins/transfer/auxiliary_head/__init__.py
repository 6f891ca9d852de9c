"""Auxiliary head: distillation through heads of its own on the shared trunk (arXiv 2502.17494)."""
