"""Transformer: a history read by causal self-attention with rotary positions."""
