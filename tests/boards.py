"""What is in the dashboards' files, for the tests."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "helm" / "moonshard" / "dashboards"
OURS = re.compile(r"\b(?:moonshard|process|python)_[a-z0-9_]+")
SUFFIXES = ("_bucket", "_sum", "_count")
EMPTY_UNTIL = re.compile(r"Empty until (.*)\.$")


@dataclass(frozen=True, slots=True)
class DrawnQuery:
    """event: without which the panel is empty, or ""."""

    board: str
    panel: str
    expression: str
    event: str

    @property
    def metrics(self) -> set[str]:
        return metric_names(self.expression)


def boards() -> dict[str, dict[str, Any]]:
    """By file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in board["panels"] if panel["type"] != "row")


def queries() -> list[DrawnQuery]:
    return [
        DrawnQuery(name, panel["title"], target["expr"], event_of(panel))
        for name, board in boards().items()
        for panel in panels(board)
        for target in panel["targets"]
    ]


def event_of(panel: dict[str, Any]) -> str:
    found = EMPTY_UNTIL.search(panel["description"])
    return found[1] if found else ""


def metric_names(expression: str) -> set[str]:
    """Names of exported families' samples in a query, a histogram's without its suffix."""
    return {family_of(name) for name in OURS.findall(re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression))}


def family_of(sample: str) -> str:
    for suffix in SUFFIXES:
        sample = sample.removesuffix(suffix)
    return sample


def filled_in(expression: str, interval: str = "1m") -> str:
    """With every variable set to all."""
    expression = expression.replace("$__rate_interval", interval)
    return re.sub(r"\$\w+", ".*", expression)
