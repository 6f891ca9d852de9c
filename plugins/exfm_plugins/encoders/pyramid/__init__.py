"""Pyramid: a long history read at several time scales, in fewer tokens from level to level."""
