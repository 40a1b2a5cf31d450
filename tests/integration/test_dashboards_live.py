"""Dashboards and rules against a running cell: what is exported is drawn, what is drawn has data."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import yaml
from prometheus_client.parser import text_string_to_metric_families

from moonshard_cluster.boards.internal import INTERNAL
from moonshard_cluster.client import Client
from tests.boards import OURS, DrawnQuery, family_of, filled_in, metric_names, queries
from tests.conftest import REPOSITORY
from tests.integration.cells import greedy
from tests.integration.prometheus_server import has_data, scrape

RULES = sorted((REPOSITORY / "helm" / "moonshard" / "rules").glob("*.yaml"))
FILL_S = 30.0

# What fills a panel that says it is "Empty until ..."; a panel may name no other event.
EVENTS: dict[str, Callable[[Client], None]] = {}


def exported(client: Client) -> set[str]:
    """Sample names of all processes, a histogram's without its suffixes."""
    return {
        sample.name if family.type != "histogram" else family_of(sample.name)
        for worker in client.status().workers
        for family in text_string_to_metric_families(scrape(worker.metrics_address))
        for sample in family.samples
        if OURS.fullmatch(sample.name)
    }


def rule_expressions() -> dict[str, str]:
    """By the rule's name."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule.get("alert") or rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def test_every_metric_is_drawn_or_internal_and_every_drawn_one_exported(client: Client) -> None:
    drawn = {name for drawn in queries() for name in drawn.metrics}
    greedy(client, list(range(50)), 12)
    deadline = time.monotonic() + 5.0
    while drawn - (there := exported(client)) and time.monotonic() < deadline:
        time.sleep(0.2)  # some are there only once the first window of load is told
    hidden = sorted(there - drawn - set(INTERNAL))
    assert not hidden, (
        f"exported but on no dashboard: {hidden}. Draw them in moonshard_cluster/boards and run "
        "`python -m moonshard_cluster.boards`, or say in boards/internal.py why not"
    )
    assert not drawn - there, f"on a dashboard but exported by no process: {sorted(drawn - there)}"
    assert not set(INTERNAL) - there, f"in boards/internal.py but not exported: {sorted(set(INTERNAL) - there)}"
    for name, expression in rule_expressions().items():
        missing = metric_names(expression) - there
        assert not missing, f"rule {name} needs what no process exports: {sorted(missing)}"


def test_every_query_returns_data_under_load_and_every_rule_records(client: Client, prometheus: str) -> None:
    recorded = [DrawnQuery("rules", name, name, "") for name in rule_expressions() if ":" in name]
    with running_load(client):
        for drawn in queries():
            if drawn.event:
                EVENTS[drawn.event](client)
        waiting = await_data(prometheus, queries() + recorded)
    assert not waiting, "no data from: " + "; ".join(f"{it.board} / {it.panel}: {it.expression}" for it in waiting)


@contextmanager
def running_load(client: Client) -> Iterator[None]:
    """One request after the other, prompts of several lengths."""
    ended = threading.Event()

    def ask() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            greedy(client, [(number * 7 + i) % 1700 for i in range(10 + number % 40)], 12)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


def await_data(address: str, wanted: list[DrawnQuery]) -> list[DrawnQuery]:
    """Those of the queries that have no data within the limit."""
    deadline = time.monotonic() + FILL_S
    while (wanted := [it for it in wanted if not answers(address, it.expression)]) and time.monotonic() < deadline:
        time.sleep(1)
    return wanted


def answers(address: str, expression: str) -> bool:
    try:
        return has_data(address, filled_in(expression))
    except OSError:
        return False  # still starting, or it refuses the query, which is then told as no data
