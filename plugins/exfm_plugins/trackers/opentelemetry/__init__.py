"""Metrics of OpenTelemetry."""
