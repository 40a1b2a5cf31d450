"""Exported metrics that no dashboard draws, and why. Everything else that is exported must be drawn."""

INTERNAL: dict[str, str] = {}
