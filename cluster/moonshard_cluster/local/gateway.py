"""The HTTP gateway of a local cell: smg as one more child of the launcher."""

import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from moonshard.config import CellConfig
from moonshard.errors import Unavailable
from moonshard_cluster.local.gateway_plan import GatewayPlan, write_plan
from moonshard_cluster.local.program import Program
from moonshard_cluster.local.supervisor import Child, Death, error_of

NAME, MODULE = "gateway", "moonshard_cluster.local.gateway_program"
# Between two looks, and for one.
LOOK_S, ANSWER_S = 0.05, 2.0


class Cluster(Protocol):
    """A cell that takes one more child, wherever its workers run."""

    config: CellConfig
    log_dir: Path
    router_address: str

    def adopt(self, start: Callable[[], Child]) -> None: ...

    def wait(self, timeout_s: float | None) -> list[Death]: ...


def start_gateway(cluster: Cluster, plan: GatewayPlan) -> None:
    """Put smg in front of a ready router; returns once it answers on plan.url.

    Raises Unavailable with its last words when it died or does not answer.
    """
    plan = replace(plan, router_address=cluster.router_address)
    path = cluster.config.run_dir / "gateway.json"
    write_plan(plan, path)
    log_path = cluster.log_dir / f"{NAME}.log"
    cluster.adopt(lambda: Child(NAME, Program(MODULE, [str(path)], log_path, own_group=True), log_path))
    _await_ready(cluster, plan)


def _await_ready(cluster: Cluster, plan: GatewayPlan) -> None:
    limit_s = cluster.config.timeouts.join_s
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if _is_ready(plan.url):
            return
        if dead := cluster.wait(LOOK_S):
            raise error_of(dead)
    raise Unavailable(f"the gateway did not answer on {plan.url} within {limit_s:g} s")


def _is_ready(url: str) -> bool:
    """Ready is who has a worker and its tokenizer."""
    try:
        with urllib.request.urlopen(f"{url}/readiness", timeout=ANSWER_S) as answer:
            return bool(answer.status == 200)
    except OSError:  # urllib's errors and refused connections alike
        return False
