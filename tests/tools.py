"""Real tools that tests drive."""

import shutil

import pytest


def require_tool(name: str) -> str:
    """Path of a program, or skip: tests/README.md tells how to install it; the gate installs it where it can."""
    if path := shutil.which(name):
        return path
    pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
