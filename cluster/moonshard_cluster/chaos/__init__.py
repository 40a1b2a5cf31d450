"""Faults on purpose: what is injected, the load that suffers it, and the verdict."""
