"""`moonshard chaos`: break things on purpose while a load runs, and say what it cost."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from moonshard.errors import ConfigError
from moonshard_cluster.chaos.faults import Fault, allowed
from moonshard_cluster.chaos.run import Experiment, run_experiment
from moonshard_cluster.chaos.soak import seconds_of, soak
from moonshard_cluster.chaos.verdict import Report
from moonshard_cluster.client import DEFAULT_ROUTER, Client


def chaos(
    faults: Annotated[list[Fault] | None, typer.Argument(help="drawn from at random [with --soak: all]")] = None,
    soak_time: Annotated[str | None, typer.Option("--soak", help="go on for so long: 90s, 30m, 1.5h")] = None,
    target: Annotated[str, typer.Option("--target", help="expert-3, attention-0, expert, attention or any")] = "any",
    router: Annotated[str, typer.Option("--router", help="HOST:PORT of the router")] = DEFAULT_ROUTER,
    num_faults: Annotated[int, typer.Option("--times", min=1, help="faults, one after the other")] = 1,
    every_s: Annotated[float, typer.Option("--every", min=0, help="seconds before each")] = 5.0,
    fault_s: Annotated[float, typer.Option("--lasting", min=0, help="seconds, for those that last")] = 5.0,
    num_streams: Annotated[int, typer.Option("--streams", min=1, help="concurrent greedy streams")] = 16,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="tokens of each stream")] = 200,
    pause_limit_s: Annotated[
        float | None, typer.Option("--pause-limit", help="fail when tokens of a stream are further apart")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="of the choices")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the report here as well")] = None,
) -> None:
    """Kill, stop, slow, corrupt or partition workers of a cell of this machine while streams run.

    The same streams run once undisturbed; the verdict compares. Exit status 1 when a request failed, tokens were lost
    or repeated, an output differs, a pause was too long, or, with --soak, a process grew. corrupt, stale and partition
    need `moonshard up --fault-hooks`.
    """
    console = Console(stderr=True)
    duration_s = seconds_of(soak_time) if soak_time else None
    if not faults and duration_s is None:
        raise ConfigError("faults", f"name at least one of {', '.join(fault.value for fault in Fault)}")
    experiment = replace(
        Experiment(faults or []),
        target=target,
        num_faults=num_faults,
        every_s=every_s,
        fault_s=fault_s,
        num_streams=num_streams,
        max_tokens=max_tokens,
        pause_limit_s=pause_limit_s,
        seed=seed,
    )

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    with Client(router) as client:
        experiment = replace(experiment, faults=faults or allowed(client.status()))
        if duration_s is None:
            report = run_experiment(client, experiment, tell)
        else:
            report = soak(client, experiment, duration_s, tell)
    if json_file:
        import json

        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    Console().print(render(report))
    if not report.passed:
        raise typer.Exit(1)


def render(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = {
        "faults": ", ".join(report.faults),
        "streams": str(report.num_streams),
        "failed": str(report.num_failed),
        "tokens lost or repeated": str(report.num_lost),
        "outputs that differ": str(report.num_different),
        "longest pause": f"{report.longest_pause_s:.2f} s (undisturbed {report.undisturbed_pause_s:.2f} s)",
    }
    if report.resources:
        rows["processes that grew"] = str(len(report.grown))
        for it in report.grown or [it for it in report.resources if it.name in ("launcher", "router")]:
            rows[f"  {it.name}"] = str(it).partition(": ")[2]
    rows["verdict"] = "passed" if report.passed else "failed"
    for error in report.errors:
        rows[f"error {len(rows)}"] = error
    for name, text in rows.items():
        table.add_row(name, text)
    return table
