"""`moonshard trace`: why was this token slow? Which experts its rows went to, and which shard answered last."""

from collections.abc import Iterator
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table

from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.client import DEFAULT_ROUTER, Client

LAYERS_SHOWN = 4
STEPS_SHOWN = 8
EXPERTS_SHOWN = 8


def trace(
    request_id: Annotated[str, typer.Argument(help="of the request; without it, those that are kept")] = "",
    router: Annotated[str, typer.Option("--router", help="HOST:PORT of the router")] = DEFAULT_ROUTER,
    steps: Annotated[int, typer.Option("--steps", help="slowest iterations to show", min=1)] = STEPS_SHOWN,
    layers: Annotated[int, typer.Option("--layers", help="of each, the layers that waited longest", min=1)] = (
        LAYERS_SHOWN
    ),
    json: Annotated[bool, typer.Option("--json", help="all that is known")] = False,
) -> None:
    """Show how a traced request's tokens were routed. A request is traced when its caller sends the metadata
    `x-trace: 1`, or by chance (`metrics.trace_share`)."""
    with Client(router) as client:
        found = client.trace(request_id)
    console = Console(soft_wrap=not Console().is_terminal)
    if json:
        console.print_json(MessageToJson(found, always_print_fields_with_no_presence=True))
    elif not request_id:
        console.print("\n".join(found.request_ids) or "no request has been traced", markup=False, highlight=False)
    else:
        for sequence in found.sequences:
            _show(console, sequence, steps, layers)


def _show(console: Console, sequence: pb.SequenceTrace, num_steps: int, num_layers: int) -> None:
    console.print("\n".join(summary(sequence)), markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("token", "ms", "rows", "layer", "waited ms", "last shard", "experts"):
        table.add_column(title, justify="left" if title == "experts" else "right")
    slowest = sorted(sequence.steps, key=lambda step: -step.seconds)[:num_steps]
    for step in sorted(slowest, key=lambda step: step.position):
        for row in rows(step, num_layers):
            table.add_row(*row)
    console.print(table)


def summary(sequence: pb.SequenceTrace) -> Iterator[str]:
    """The request in a few lines."""
    mean_ms = 1e3 * sequence.seconds / max(sequence.num_steps, 1)
    yield (
        f"{sequence.request_id}, choice {sequence.choice}: {sequence.num_steps} iterations, last of "
        f"attention-{sequence.rank}, {mean_ms:.1f} ms each"
    )
    shards = sorted(range(len(sequence.num_last)), key=lambda shard: -sequence.num_last[shard])
    told = [f"{shard} ({sequence.num_last[shard]}x, {1e3 * sequence.wait_s[shard]:.1f} ms)" for shard in shards]
    yield f"waited longest for shard {', '.join(told)}" if told else "nothing tells the shards apart"


def rows(step: pb.RoutingStep, num_layers: int) -> Iterator[tuple[str, ...]]:
    """Of an iteration, the layers that waited longest; what is the iteration's own stands in the first."""
    worst = sorted(step.layers, key=lambda route: -route.combine_s)[:num_layers]
    last_token = step.position + step.num_tokens - 1
    place = str(step.position) if step.num_tokens == 1 else f"{step.position}-{last_token}"
    own = (place, f"{1e3 * step.seconds:.2f}", str(step.num_rows))
    for route in worst:
        yield (*own, *_route(route))
        own = ("", "", "")


def _route(route: pb.LayerRoute) -> tuple[str, ...]:
    waits = list(route.wait_s)
    last = str(waits.index(max(waits))) if waits and max(waits) > min(waits) else "-"
    shown = " ".join(map(str, route.experts[:EXPERTS_SHOWN])) + (" ..." if len(route.experts) > EXPERTS_SHOWN else "")
    return str(route.layer), f"{1e3 * route.combine_s:.2f}", last, shown
