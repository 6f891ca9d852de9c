"""Tasks of SkyPilot."""
