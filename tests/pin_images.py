"""Writes helm/images/constraints.txt: the exact versions that the images install, from this environment.

.venv/bin/python tests/pin_images.py
"""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "helm" / "images" / "constraints.txt"
HEAD = (
    "# What the images install, exactly: written by tests/pin_images.py from the environment in which the tests pass.\n"
)


def pins() -> dict[str, str]:
    """Name to version, of the package's dependencies, the router's and the gateway's, and all that these need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    waiting = [Requirement(text) for text in (*project["dependencies"], *extras["router"], *extras["gateway"])]
    found: dict[str, str] = {}
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name in found:
            continue
        installed = importlib.metadata.distribution(name)
        found[name] = installed.version.partition("+")[0]
        needed = map(Requirement, installed.requires or [])
        waiting += [each for each in needed if _applies(each, {"", *wanted.extras})]
    return found


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def main() -> int:
    FILE.write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(pins().items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
