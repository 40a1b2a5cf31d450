"""python -m moonshard_cluster.local.gateway_program PLAN: smg in this process, for as long as the launcher lives.

smg is started through its Python binding and not by its command line, because a command line shows in the process list.
"""

import json
import os
import select
import signal
import sys
import threading
from pathlib import Path

from smg.router import Router
from smg.router_args import RouterArgs

from moonshard_cluster.local.gateway_plan import GatewayPlan

WORKER_CHECK_S = 1
HEALTH_CHECK_S = 2


def main() -> int:
    plan = GatewayPlan(**json.loads(Path(sys.argv[1]).read_text()))
    os.environ["NO_COLOR"] = "1"
    # Blocked here, before smg's threads inherit the mask, so that a thread of ours takes it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for end in (_await_end, _await_launchers_end):
        threading.Thread(target=end, name=end.__name__, daemon=True).start()
    Router.from_args(router_arguments(plan)).start()
    return 0


def router_arguments(plan: GatewayPlan) -> RouterArgs:
    """smg's settings: one worker, whose router queues, retries and sheds load by itself."""
    return RouterArgs(
        worker_urls=[f"{'grpcs' if plan.ca else 'grpc'}://{plan.router_address}"],
        ca_cert_paths=[plan.ca] if plan.ca else [],
        client_cert_path=plan.client_cert or None,
        client_key_path=plan.client_key or None,
        tenant_api_keys=api_keys(Path(plan.api_keys_file).read_text()) if plan.api_keys_file else [],
        host=plan.host,
        port=plan.port,
        policy="round_robin",
        backend="vllm",
        reasoning_parser=plan.reasoning_parser,
        tool_call_parser=plan.tool_parser,
        model_aliases=plan.aliases,
        prometheus_host=plan.metrics_host,
        prometheus_port=plan.metrics_port,
        log_level="warn",
        worker_startup_check_interval=WORKER_CHECK_S,
        health_check_interval_secs=HEALTH_CHECK_S,
        # What the router refuses is refused: its queue is the queue, its retry hint the hint.
        disable_retries=True,
        disable_circuit_breaker=True,
        control_plane_api_keys=[("launcher", "moonshard", plan.control_key, "admin")],
    )


def api_keys(text: str) -> list[tuple[str, str]]:
    """(tenant, key) of the router's keys file, which the router has checked."""
    lines = (line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return [(tenant, key) for tenant, key, *_ in lines]


def _await_end() -> None:
    """The launcher ends the gateway last, when the router has finished what ran: there is nothing left to wait for.

    smg by itself would keep its port open for five seconds more, for a load balancer that nobody has here.
    """
    signal.sigwait({signal.SIGTERM})
    os._exit(0)


def _await_launchers_end() -> None:
    """Standard input closes however the launcher dies."""
    stdin = sys.stdin.fileno()
    select.select([stdin], [], [])
    while os.read(stdin, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
