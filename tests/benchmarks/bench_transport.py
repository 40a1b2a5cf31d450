"""Time one dispatch and combine: one attention process, eight shard processes, no compute.

    python tests/benchmarks/bench_transport.py --transport links --hidden 1024 --rows 1 64 512 [--json FILE]

Every row has one expert on every shard, so that each of the eight links carries every row. `links` runs over Unix
sockets, `all_to_all` over gloo (there one dispatch and combine are two all-to-alls; the step agreement is not timed).
"""

import argparse
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from moonshard.errors import TransportError
from moonshard.transport.all_to_all import AllToAllDispatcher, AllToAllEndpoint, join_group
from moonshard.transport.contract import Dispatcher, Endpoint, WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint

_EXPERTS_PER_SHARD = 48
_TIMEOUT_S = 60.0


def make_spec(hidden_size: int, num_shards: int) -> WireSpec:
    return WireSpec(hidden_size, num_shards, _EXPERTS_PER_SHARD * num_shards, num_shards, (1,), torch.bfloat16, "bench")


def open_endpoint(transport: str, spec: WireSpec, shard: int, address: str) -> Endpoint:
    if transport == "links":
        return LinkEndpoint(spec, shard, f"unix:{address}/{shard}.sock")
    return AllToAllEndpoint(join_group(address, shard, spec.num_shards + 1, "cpu", _TIMEOUT_S), spec)


def open_dispatcher(transport: str, spec: WireSpec, address: str) -> Dispatcher:
    if transport == "links":
        paths = [Path(address, f"{shard}.sock") for shard in range(spec.num_shards)]
        deadline = time.monotonic() + _TIMEOUT_S
        while not all(path.exists() for path in paths) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        return LinkDispatcher(spec, 0, [f"unix:{path}" for path in paths], _TIMEOUT_S)
    return AllToAllDispatcher(join_group(address, spec.num_shards, spec.num_shards + 1, "cpu", _TIMEOUT_S), spec)


def serve(transport: str, spec: WireSpec, shard: int, address: str, stop: Event) -> None:
    """A shard whose answer is the rows themselves."""
    torch.set_num_threads(1)
    endpoint = open_endpoint(transport, spec, shard, address)
    try:
        while not stop.is_set():
            if batch := endpoint.receive(timeout_s=0.5):
                endpoint.reply(batch, batch.x_RD)
    except TransportError:
        if not stop.is_set():
            raise
    finally:
        endpoint.close()


def measure(dispatcher: Dispatcher, spec: WireSpec, num_rows: int, num_rounds: int) -> dict[str, float]:
    """Median and 90th percentile in microseconds."""
    x_TD = torch.randn(num_rows, spec.hidden_size).to(spec.row_dtype)
    topk_ids_TK = (torch.arange(spec.num_shards) * _EXPERTS_PER_SHARD).repeat(num_rows, 1).int()
    topk_weights_TK = torch.ones(num_rows, spec.top_k)
    times = []
    for _ in range(num_rounds):
        dispatcher.begin_step(num_rows)
        started = time.perf_counter()
        dispatcher.combine(dispatcher.dispatch(1, x_TD, topk_ids_TK, topk_weights_TK))
        times.append((time.perf_counter() - started) * 1e6)
    return {"median_us": round(statistics.median(times), 1), "p90_us": round(statistics.quantiles(times, n=10)[-1], 1)}


def run(
    transport: str, hidden_size: int, rows: list[int], num_shards: int, num_rounds: int
) -> list[dict[str, float | str]]:
    spec = make_spec(hidden_size, num_shards)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moonshard.transport.links", "moonshard.transport.all_to_all"])
    stop = context.Event()
    with tempfile.TemporaryDirectory() as folder:
        address = folder if transport == "links" else f"127.0.0.1:{free_port()}"
        arguments = [(transport, spec, shard, address, stop) for shard in range(num_shards)]
        shards = [context.Process(target=serve, args=args, daemon=True) for args in arguments]
        for process in shards:
            process.start()
        dispatcher = open_dispatcher(transport, spec, address)
        try:
            measure(dispatcher, spec, 1, 20)
            name: dict[str, float | str] = {"transport": transport, "hidden_size": hidden_size}
            return [{**name, "rows": n, **measure(dispatcher, spec, n, num_rounds)} for n in rows]
        finally:
            stop.set()
            dispatcher.close()
            for process in shards:
                process.join(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=["links", "all_to_all"], default="links")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 7168], help="hidden sizes")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 512], help="rows per dispatch")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [
        result
        for hidden_size in options.hidden
        for result in run(options.transport, hidden_size, options.rows, options.shards, options.rounds)
    ]
    lines = [f"{r['hidden_size']:>8} {r['rows']:>6} {r['median_us']:>12} {r['p90_us']:>12}" for r in results]
    sys.stdout.write("\n".join(["  hidden   rows    median us       p90 us", *lines, ""]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
