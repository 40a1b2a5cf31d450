"""What `moonshard plan` predicts for this machine beside what it does, on a slice of K2.5's widths.

    moonshard demo-model /tmp/slice --hidden-size 7168 --moe-width 2048 --layers 2 --chaotic
    python -m tests.benchmarks.bench_plan /tmp/slice [--rounds 3] [--json FILE]

The machine is described first (what `moonshard bench --describe` writes); in each round its bandwidth and peaks are
measured again before and after the slice serves, because what neighbours take of a shared machine they take from both.
Ratios are of a round each, medians over the rounds. `nice -n -10` (as root) keeps the neighbours away.
"""

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from moonshard.model.config import ModelConfig
from moonshard_cluster.bench.serving import PROMPT_TOKENS, Speed, measure
from moonshard_cluster.commands.bench import described, machine_figures, measure_turns, ready_cell
from moonshard_cluster.plan import roofline
from moonshard_cluster.plan.costs import Costs
from moonshard_cluster.plan.layout import on_one_machine
from moonshard_cluster.plan.machines import Machine

BATCHES, PREFILL, CHUNK, NEW_TOKENS, THREADS = (1, 8, 32), 512, 256, 32, 2
LIMIT_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console(stderr=True)
    costs = Costs.of(ModelConfig.from_dir(options.checkpoint), "int4")
    turns = measure_turns(console)
    found = []
    with ready_cell(console, options.checkpoint, None, 64) as (router, access):
        before = machine_figures(THREADS)
        for seed in range(options.rounds):
            speeds = asyncio.run(measure(router, PREFILL, BATCHES, NEW_TOKENS, 1, LIMIT_S, access, seed))
            after = machine_figures(THREADS)
            machine = described(between(before, after), turns)
            found.append({"machine": machine.model_dump(), "rates": compared(costs, machine, speeds)})
            before = after
    for line in medians(found):
        sys.stdout.write("  ".join(f"{key} {value}" for key, value in line.items()) + "\n")
    if options.json:
        options.json.write_text(json.dumps({"medians": medians(found), "rounds": found}, indent=1) + "\n")


def between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Each figure's mean of two measurements."""

    def mean(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return {key: mean(value, other[key]) for key, value in one.items()}
        if isinstance(one, list):
            return [mean(*pair) for pair in zip(one, other, strict=True)]
        return (one + other) / 2 if isinstance(one, float) else one

    return dict(mean(before, after))


def medians(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what was asked: rates, terms and their ratio."""
    rows = zip(*(each["rates"] for each in found), strict=True)
    return [{key: _median([each[key] for each in row]) for key in row[0]} for row in rows]


def _median(values: list[Any]) -> Any:
    return round(statistics.median(values), 3) if isinstance(values[0], float) else values[0]


def compared(costs: Costs, machine: Machine, speeds: list[Speed]) -> list[dict[str, Any]]:
    """Tokens a second by what was asked, and the terms of the predicted step in milliseconds."""
    layout, measured = on_one_machine(costs, machine), {speed.name: speed.median for speed in speeds}
    steps = {f"prefill {PREFILL}": (CHUNK, roofline.prefill(costs, layout, CHUNK, PREFILL))}
    for batch in BATCHES:
        steps[f"decode b{batch}"] = batch, roofline.decode(costs, layout, batch, PROMPT_TOKENS + NEW_TOKENS // 2)
    return [
        {
            "what": name,
            "measured": round(measured[name], 1),
            "predicted": round(tokens / terms.step, 1),
            "ratio": round(tokens / terms.step / measured[name], 3),
            **{term: round(1e3 * seconds, 2) for term, seconds in dataclasses.asdict(terms).items()},
        }
        for name, (tokens, terms) in steps.items()
    ]


if __name__ == "__main__":
    main()
