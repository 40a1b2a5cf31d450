"""Time one dispatch and combine over Unix sockets: one attention process, eight shard processes, no compute.

    python tests/benchmarks/bench_transport.py --hidden 1024 --rows 1 64 512 [--json FILE]

Every row has one expert on every shard, so that each of the eight links carries every row.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from moonshard.transport.contract import WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint

_EXPERTS_PER_SHARD = 48


def make_spec(hidden_size: int, num_shards: int) -> WireSpec:
    return WireSpec(hidden_size, num_shards, _EXPERTS_PER_SHARD * num_shards, num_shards, (1,), torch.bfloat16, "bench")


def serve(spec: WireSpec, shard: int, address: str, stop: Event) -> None:
    """A shard whose answer is the rows themselves."""
    torch.set_num_threads(1)
    endpoint = LinkEndpoint(spec, shard, address)
    while not stop.is_set():
        if batch := endpoint.receive(timeout_s=0.5):
            endpoint.reply(batch, batch.x_RD)
    endpoint.close()


def measure(dispatcher: LinkDispatcher, num_rows: int, num_rounds: int) -> dict[str, float]:
    """Median and 90th percentile in microseconds."""
    spec = dispatcher.spec
    x_TD = torch.randn(num_rows, spec.hidden_size).to(spec.row_dtype)
    topk_ids_TK = (torch.arange(spec.num_shards) * _EXPERTS_PER_SHARD).repeat(num_rows, 1).int()
    topk_weights_TK = torch.ones(num_rows, spec.top_k)
    times = []
    for _ in range(num_rounds):
        started = time.perf_counter()
        dispatcher.begin_step(num_rows)
        dispatcher.combine(dispatcher.dispatch(1, x_TD, topk_ids_TK, topk_weights_TK))
        times.append((time.perf_counter() - started) * 1e6)
    return {"median_us": round(statistics.median(times), 1), "p90_us": round(statistics.quantiles(times, n=10)[-1], 1)}


def run(hidden_size: int, rows: list[int], num_shards: int, num_rounds: int) -> list[dict[str, float]]:
    spec = make_spec(hidden_size, num_shards)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moonshard.transport.links"])
    stop = context.Event()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{shard}.sock") for shard in range(num_shards)]
        arguments = [(spec, shard, f"unix:{path}", stop) for shard, path in enumerate(paths)]
        shards = [context.Process(target=serve, args=args, daemon=True) for args in arguments]
        for process in shards:
            process.start()
        deadline = time.monotonic() + 60
        while not all(path.exists() for path in paths) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        dispatcher = LinkDispatcher(spec, 0, [f"unix:{path}" for path in paths])
        try:
            measure(dispatcher, 1, 20)
            return [{"hidden_size": hidden_size, "rows": n, **measure(dispatcher, n, num_rounds)} for n in rows]
        finally:
            dispatcher.close()
            stop.set()
            for process in shards:
                process.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 7168], help="hidden sizes")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 512], help="rows per dispatch")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [r for hidden in options.hidden for r in run(hidden, options.rows, options.shards, options.rounds)]
    lines = [f"{r['hidden_size']:>8} {r['rows']:>6} {r['median_us']:>12} {r['p90_us']:>12}" for r in results]
    sys.stdout.write("\n".join(["  hidden   rows    median us       p90 us", *lines, ""]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
