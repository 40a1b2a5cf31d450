"""Real tools that tests drive."""

import shutil
import sys
from pathlib import Path

import pytest

# Where the gate puts npm packages: beside the Python ones.
NPM_PREFIX = Path(sys.prefix) / "lib" / "moonshard-tools"


def require_tool(name: str) -> str:
    """Path of a program, or skip: tests/README.md tells how to install it; the gate installs it where it can."""
    if path := shutil.which(name):
        return path
    pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")


def require_npm_tool(name: str, package: str) -> str:
    """Path of a program of an npm package, or skip: the gate installs it where npm is."""
    if path := shutil.which(name, path=NPM_PREFIX / "node_modules" / ".bin") or shutil.which(name):
        return path
    pytest.skip(f"{name} is not installed (npm install --prefix {NPM_PREFIX} {package})")
