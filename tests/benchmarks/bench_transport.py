"""Time one dispatch and combine: one attention process, eight shard processes, no compute.

    python -m tests.benchmarks.bench_transport --engines links python --hidden 1024 --rows 1 64 512 [--json FILE]

Every row has one expert on every shard, so that each of the eight links carries every row. `links` runs over Unix
sockets with native calls, `python` is the same without them, `all_to_all` runs over gloo (there one dispatch and
combine are two all-to-alls; the step agreement is not timed). Engines are paired: their cells are open together and
take turns, a few rounds each, so that both see the same machine.
"""

import argparse
import itertools
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from moonshard.errors import TransportError
from moonshard.kernels import links as kernel_links
from moonshard.transport.all_to_all import AllToAllDispatcher, AllToAllEndpoint, join_group
from moonshard.transport.contract import Dispatcher, Endpoint, WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint

_EXPERTS_PER_SHARD = 48
_TIMEOUT_S = 60.0
_TURNS = 10
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_spec(hidden_size: int, num_shards: int, row_dtype: torch.dtype = torch.bfloat16) -> WireSpec:
    return WireSpec(hidden_size, num_shards, _EXPERTS_PER_SHARD * num_shards, num_shards, (1,), row_dtype, "bench")


@contextmanager
def engine_of(transport: str) -> Iterator[None]:
    """Links opened within have the engine that the name says."""
    before = kernel_links.native_links
    if transport == "python":
        kernel_links.native_links = lambda: None  # type: ignore[assignment]
    elif transport == "links" and before() is None:
        raise SystemExit("native kernels are not built: run python -m moonshard.kernels")
    try:
        yield
    finally:
        kernel_links.native_links = before


def open_endpoint(transport: str, spec: WireSpec, shard: int, address: str) -> Endpoint:
    if transport == "all_to_all":
        return AllToAllEndpoint(join_group(address, shard, spec.num_shards + 1, "cpu", _TIMEOUT_S), spec)
    with engine_of(transport):
        return LinkEndpoint(spec, shard, f"unix:{address}/{shard}.sock")


def open_dispatcher(transport: str, spec: WireSpec, address: str) -> Dispatcher:
    if transport == "all_to_all":
        return AllToAllDispatcher(join_group(address, spec.num_shards, spec.num_shards + 1, "cpu", _TIMEOUT_S), spec)
    paths = [Path(address, f"{shard}.sock") for shard in range(spec.num_shards)]
    deadline = time.monotonic() + _TIMEOUT_S
    while not all(path.exists() for path in paths) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    with engine_of(transport):
        return LinkDispatcher(spec, 0, [f"unix:{path}" for path in paths], _TIMEOUT_S)


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


@contextmanager
def cell(transport: str, spec: WireSpec, context: ForkServerContext) -> Iterator[Dispatcher]:
    """Shards in processes of their own, and the dispatcher that calls them."""
    stop = context.Event()
    with tempfile.TemporaryDirectory() as folder:
        address = f"127.0.0.1:{free_port()}" if transport == "all_to_all" else folder
        arguments = [(transport, spec, shard, address, stop) for shard in range(spec.num_shards)]
        shards = [context.Process(target=serve, args=args, daemon=True) for args in arguments]
        for process in shards:
            process.start()
        dispatcher = open_dispatcher(transport, spec, address)
        try:
            yield dispatcher
        finally:
            stop.set()
            dispatcher.close()
            for process in shards:
                process.join(10)


def measure(dispatcher: Dispatcher, spec: WireSpec, num_rows: int, num_rounds: int) -> list[float]:
    """Microseconds of each round."""
    x_TD = torch.randn(num_rows, spec.hidden_size).to(spec.row_dtype)
    topk_ids_TK = (torch.arange(spec.num_shards) * _EXPERTS_PER_SHARD).repeat(num_rows, 1).int()
    topk_weights_TK = torch.ones(num_rows, spec.top_k)
    times = []
    for _ in range(num_rounds):
        dispatcher.begin_step(num_rows)
        started = time.perf_counter()
        dispatcher.combine(dispatcher.dispatch(1, x_TD, topk_ids_TK, topk_weights_TK))
        times.append((time.perf_counter() - started) * 1e6)
    return times


def summary(times: list[float]) -> dict[str, float]:
    return {"median_us": round(statistics.median(times), 1), "p90_us": round(statistics.quantiles(times, n=10)[-1], 1)}


def run(engines: list[str], spec: WireSpec, rows: list[int], num_rounds: int) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moonshard.transport.links", "moonshard.transport.all_to_all"])
    name = {"hidden_size": spec.hidden_size, "dtype": str(spec.row_dtype).removeprefix("torch.")}
    results = []
    with ExitStack() as stack:
        cells = {engine: stack.enter_context(cell(engine, spec, context)) for engine in engines}
        for num_rows in rows:
            times: dict[str, list[float]] = {engine: [] for engine in engines}
            for _ in range(_TURNS):
                for engine, dispatcher in cells.items():
                    measure(dispatcher, spec, num_rows, 3)
                    times[engine] += measure(dispatcher, spec, num_rows, max(1, num_rounds // _TURNS))
            results += [{**name, "rows": num_rows, "engine": engine, **summary(times[engine])} for engine in engines]
    return results


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", choices=["links", "python", "all_to_all"], nargs="+", default=["links", "python"])
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 7168], help="hidden sizes")
    parser.add_argument("--dtypes", choices=list(_DTYPES), nargs="+", default=list(_DTYPES), help="types of the rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 512], help="rows per dispatch")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    columns = ["hidden_size", "dtype", "rows", "engine", "median_us", "p90_us"]
    sys.stdout.write("".join(f"{column:>12}" for column in columns) + "\n")
    for hidden_size, dtype in itertools.product(options.hidden, options.dtypes):
        spec = make_spec(hidden_size, options.shards, _DTYPES[dtype])
        for result in run(options.engines, spec, options.rows, options.rounds):
            results.append(result)
            sys.stdout.write("".join(f"{result[column]:>12}" for column in columns) + "\n")
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
