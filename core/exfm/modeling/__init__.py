"""Assembles a ranking model from embedding tables, tokens, encoder, backbone and heads."""
