"""`moonshard status`: what runs, who holds which experts, how fast it goes."""

from typing import Annotated, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.client import DEFAULT_ROUTER, Client


def status(
    router: Annotated[str, typer.Option("--router", help="HOST:PORT of the router")] = DEFAULT_ROUTER,
    json: Annotated[bool, typer.Option("--json", help="print the router's answer as JSON")] = False,
) -> None:
    """Show the processes of a running cell, expert coverage and throughput."""
    with Client(router) as client:
        found = client.status()
    if json:
        from google.protobuf.json_format import MessageToJson

        typer.echo(MessageToJson(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
    else:
        Console(soft_wrap=not Console().is_terminal).print(render(found))


def render(found: pb.GetStatusResponse) -> RenderableType:
    """The status as a table and two lines under it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("process", "pid", "state", "experts", "tok/s", "memory", "seen", "metrics"):
        justify: Literal["left", "right"] = "right" if title in ("pid", "tok/s", "memory", "seen") else "left"
        table.add_column(title, justify=justify, no_wrap=True)
    for worker in sorted(found.workers, key=lambda w: (w.role, w.rank)):
        table.add_row(*_row(worker))
    return Group(table, Text(), *map(Text, _summary(found)))


def _row(worker: pb.WorkerStatus) -> tuple[str, ...]:
    role = pb.Role.Name(worker.role).removeprefix("ROLE_").lower()
    state = pb.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
    name = role if worker.role == pb.ROLE_ROUTER else f"{role}-{worker.rank}"
    experts = f"{worker.first_expert}..{worker.end_expert - 1}" if worker.end_expert else ""
    age = "" if worker.role == pb.ROLE_ROUTER else f"{worker.heartbeat_age_s:.1f} s"
    rate = "" if worker.role == pb.ROLE_ROUTER else f"{worker.tokens_per_second:.1f}"
    memory = f"{worker.resident_bytes / 2**20:.0f} MiB" if worker.resident_bytes else ""
    return name, str(worker.pid), state, experts, rate, memory, age, worker.metrics_address


def _summary(found: pb.GetStatusResponse) -> list[str]:
    cover = found.coverage
    fewest, most = cover.min_copies, cover.max_copies
    copies = str(fewest) if fewest == most else f"{fewest}..{most}"
    shards = sum(worker.role == pb.ROLE_EXPERT for worker in found.workers)
    configured = found.num_shards * max(1, found.num_replicas)
    return [
        f"{found.model_name}: {'ready' if found.ready else 'not ready'}, {len(found.workers)} processes, "
        f"{found.num_attention} attention, {shards}/{configured} shards over {found.transport}, "
        f"epoch {found.epoch}",
        f"coverage: {cover.num_covered}/{cover.num_experts} experts, copies of each: {copies}",
        f"requests: {found.num_running} running, {found.num_waiting} waiting; {found.tokens_per_second:.1f} tokens/s",
    ]
