"""Placements beside the published EPLB algorithm on the same loads: balancedness and time for 60 layers of 384 experts.

python -m tests.benchmarks.bench_placement [RECORDING ...]     recordings of `moonshard experts --record`
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from moonshard.placement import Rules, balancedness, contiguous, plan_layer, shard_weights, weigher
from moonshard_cluster.load.matrix import read_recording
from tests.unit.placement.eplb import eplb_balancedness
from tests.unit.placement.skew import skewed_load

NUM_SHARDS, REDUNDANT, NUM_EXPERTS = 8, 32, 384


def main() -> None:
    say("| load | layers | as it is | ours, mean | ours, worst | EPLB, mean | EPLB, worst | ours, time |")
    say("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for concentration in (0.2, 0.6, 1.5):
        load_LE = skewed_load(60, NUM_EXPERTS, 4096, 8, 2, concentration).tolist()
        row(f"gamma, {concentration}", load_LE)
    for path in map(Path, sys.argv[1:]):
        row(path.name, read_recording(path).rows_LE.tolist())


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def row(name: str, load_LE: Sequence[Sequence[int]]) -> None:
    num_experts = len(load_LE[0])
    rules = Rules(NUM_SHARDS, (num_experts + REDUNDANT) // NUM_SHARDS)
    started = time.process_time()
    plans = [plan_layer(load, rules) for load in load_LE]
    took_s = time.process_time() - started
    ours = [balancedness(shard_weights(it, weigher(load, rules))) for it, load in zip(plans, load_LE, strict=True)]
    theirs = [eplb_balancedness(load, NUM_SHARDS, rules.slots_per_shard) for load in load_LE]
    start = contiguous(num_experts, NUM_SHARDS)
    before = [balancedness(shard_weights(start, weigher(load, rules))) for load in load_LE]
    figures = [mean(before), mean(ours), min(ours), mean(theirs), min(theirs)]
    say(f"| {name} | {len(load_LE)} | " + " | ".join(f"{x:.4f}" for x in figures) + f" | {took_s * 1e3:.0f} ms |")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
