"""Real tools that tests drive, and small helpers around them."""

import shutil
import socket

import pytest


def require_tool(name: str) -> str:
    """Path of a program, or skip: tests/README.md tells how to install it; the gate installs it where it can."""
    if path := shutil.which(name):
        return path
    pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
