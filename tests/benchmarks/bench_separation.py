"""What it costs to keep the experts in eight processes: decode in one process against a cell over links.

    python -m tests.benchmarks.bench_separation CHECKPOINT [--batches 1 32] [--rounds 5] [--dtype float32]

Both sides run the same kernels with two threads (a shard has one). `local` is the attention worker's own engine with
all experts in its process; the cell is a router, an attention worker and eight shards, tokens counted at the client.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from moonshard.attention.engine import Engine
from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.sampling import SamplingParams
from moonshard_cluster.bench.serving import measure
from moonshard_cluster.client import Client
from moonshard_cluster.local.plan import plan_cell
from moonshard_cluster.local.progress import wait_ready
from moonshard_cluster.local.supervisor import LocalCluster
from tests.benchmarks.native_engine import native_engine

THREADS, PROMPT, NEW_TOKENS = 2, 32, 65


def local_speed(engine: Engine, batch: int, salt: int) -> float:
    """Decode tokens per second once every sequence has its first token."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    prompts = [[(7 * i + 13 * j + salt) % 1500 for j in range(PROMPT)] for i in range(batch)]
    engine.admit([Sequence(str(i), prompt, params) for i, prompt in enumerate(prompts)])
    while (plan := engine.plan()).prefills:
        engine.step(plan)
    started, tokens = time.perf_counter(), 0
    while (plan := engine.plan()).num_tokens:
        tokens += len(engine.step(plan))
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    limits, cache_dtype = AttentionConfig(num_blocks=512), getattr(torch, options.dtype)
    engine = native_engine(options.checkpoint, options.dtype, "int8", cache_dtype, limits, THREADS)
    values = {"checkpoint": options.checkpoint, "router": {"port": 0}, "dtype": options.dtype}
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as logs, LocalCluster(plan_cell(values), Path(logs)) as cluster:
        cluster.start()
        with Client(cluster.router_address) as client:
            wait_ready(cluster, client)
        for salt in range(options.rounds + 1):
            for batch in options.batches:
                own = asyncio.run(measure(cluster.router_address, 1, [batch], NEW_TOKENS, 1, 300.0))[-1].median
                alone = local_speed(engine, batch, salt)
                if salt:  # the first round warms up
                    found[f"cell b{batch}"].append(own)
                    found[f"local b{batch}"].append(alone)
    for batch in options.batches:
        cell, local = (statistics.median(found[f"{side} b{batch}"]) for side in ("cell", "local"))
        ratio = statistics.median(c / a for c, a in zip(found[f"cell b{batch}"], found[f"local b{batch}"], strict=True))
        sys.stdout.write(f"b{batch}: local {local:.1f}, cell {cell:.1f} tokens/s, ratio of pairs {ratio:.3f}\n")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
