"""One MoE layer of K2.5's real widths, all 384 experts in eight shards: decode time against bytes over bandwidth.

    moonshard demo-model /tmp/slice --hidden-size 7168 --moe-width 2048 --layers 2 --chaotic
    python -m tests.benchmarks.bench_slice /tmp/slice [--rows 1 4 32] [--json FILE]

Starts a whole cell, opens a link of its own to every shard, and times dispatch + combine of rows with random experts.
The ideal is the bytes of the distinct experts chosen over the read bandwidth measured in the same run.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from moonshard.kernels import Pool
from moonshard.kernels.limits import read_bandwidth
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import summarise
from moonshard.transport.links import LinkDispatcher
from moonshard.worker import DTYPES, wire_spec
from moonshard_cluster.client import Client
from moonshard_cluster.local.plan import plan_cell
from moonshard_cluster.local.progress import wait_ready
from moonshard_cluster.local.supervisor import LocalCluster

OWN_SOURCE, THREADS = 7, 2
BLOCK, YARDSTICK_BYTES = 5, 256 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--expert-threads", type=int, default=0, help="per shard; 0 is what the launcher plans")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = ModelConfig.from_dir(options.checkpoint)
    threads = {"num_threads": options.expert_threads}
    values = {"checkpoint": options.checkpoint, "router": {"port": 0}, "dtype": options.dtype, "experts": threads}
    config = plan_cell(values)
    found = []
    with tempfile.TemporaryDirectory() as logs, LocalCluster(config, Path(logs)) as cluster:
        cluster.start()
        with Client(cluster.router_address) as client:
            status = wait_ready(cluster, client)
        shards = sorted((w for w in status.workers if w.end_expert), key=lambda w: w.rank)
        weights = summarise(model, config.num_shards).expert_bytes_per_shard
        memory = [psutil.Process(w.pid).memory_info().rss / weights for w in shards]
        sys.stdout.write(f"resident memory of a shard over its weights: {max(memory):.3f}\n")
        spec = wire_spec(config, model, DTYPES[config.dtype])
        dispatcher = LinkDispatcher(spec, OWN_SOURCE, [w.data_address for w in shards])
        with Pool(THREADS) as pool:
            for rows in options.rows:
                found.append(measure(dispatcher, model, rows, options.repeats, pool))
                sys.stdout.write("  ".join(f"{k} {v}" for k, v in found[-1].items()) + "\n")
        dispatcher.close()
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(
    dispatcher: LinkDispatcher, model: ModelConfig, rows: int, repeats: int, pool: Pool
) -> dict[str, float | int]:
    """Blocks of BLOCK steps with the bandwidth read before each: what neighbours take, they take from both."""
    expert_bytes = summarise(model, dispatcher.spec.num_shards).bytes_per_expert
    draw = torch.Generator().manual_seed(rows)
    yardstick = torch.ones(YARDSTICK_BYTES, dtype=torch.uint8)
    _steps(dispatcher, model, rows, BLOCK, draw)  # the first ones fault pages in
    blocks = []
    for _ in range(repeats // BLOCK):
        bandwidth = read_bandwidth(pool, yardstick, rounds=3)
        elapsed_s, num_experts = _steps(dispatcher, model, rows, BLOCK, draw)
        blocks.append((elapsed_s / BLOCK, bandwidth, num_experts * expert_bytes / bandwidth / BLOCK))
    times, bandwidths, ideals = zip(*blocks, strict=True)
    return {
        "rows": rows,
        "ms": round(statistics.median(times) * 1e3, 3),
        "bandwidth_gb_s": round(statistics.median(bandwidths) / 1e9, 1),
        "ideal_ms": round(statistics.median(ideals) * 1e3, 3),
        "over_ideal": round(statistics.median(t / i for t, i in zip(times, ideals, strict=True)), 3),
    }


def _steps(
    dispatcher: LinkDispatcher, model: ModelConfig, rows: int, count: int, draw: torch.Generator
) -> tuple[float, int]:
    """Seconds of dispatch + combine in `count` steps, and how many experts they read."""
    layer, spec = model.moe_layers[0], dispatcher.spec
    elapsed_s, num_experts = 0.0, 0
    for _ in range(count):
        x_TD = torch.randn(rows, spec.hidden_size, generator=draw).to(spec.row_dtype)
        ids_TK = torch.stack([torch.randperm(spec.num_experts, generator=draw)[: spec.top_k] for _ in range(rows)])
        weights_TK = torch.full((rows, spec.top_k), 0.1)
        started = time.perf_counter()
        dispatcher.begin_step(rows)
        dispatcher.combine(dispatcher.dispatch(layer, x_TD, ids_TK.int(), weights_TK))
        elapsed_s += time.perf_counter() - started
        num_experts += len(torch.unique(ids_TK))
    return elapsed_s, num_experts


if __name__ == "__main__":
    main()
