"""Assembles results.json, and renders tables, progress, and HTML pages."""
