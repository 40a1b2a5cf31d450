"""What the router costs: time added to the first token, tokens a second of one core, beside a fake attention worker.

    python -m tests.benchmarks.bench_router [--streams 100] [--seconds 8] [--json FILE] [--profile FILE]

The router runs in a process of its own; the worker and all clients share another. The worker notes when a sequence
reaches it and when it sends the first token: what a client waits beyond that is on the way. The same clients also call
a server that makes the same tokens itself, at the same pace: the difference is what the router adds. Latency is taken
at a steady pace, throughput with a worker that never waits. On a busy machine: chrt -f 20 python ...
"""

import argparse
import asyncio
import cProfile
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from moonshard.metrics import new_registry
from moonshard.router.app import Router
from moonshard.router.members import Credits
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceServicer, InferenceStub, add_InferenceServicer_to_server
from tests.unit.router.fake_attention import FakeAttention, serving_peers
from tests.unit.router.router_peers import small_config, small_model

PROMPT = "x" * 64
STEP_S = 0.05  # of the steady pace: 20 tokens a second and stream
ANSWER_TOKENS = 40
LONG_TOKENS = 400


@dataclass(frozen=True)
class Report:
    """Milliseconds and tokens a second. core_share: of one core, what the router used at full speed."""

    streams: int
    ttft_direct_ms_median: float
    ttft_direct_ms_p99: float
    ttft_router_ms_median: float
    ttft_router_ms_p99: float
    steady_tokens_per_s: float
    steady_core_share: float
    full_tokens_per_s: float
    full_core_share: float

    @property
    def ttft_added_ms_median(self) -> float:
        return self.ttft_router_ms_median - self.ttft_direct_ms_median

    @property
    def ttft_added_ms_p99(self) -> float:
        return self.ttft_router_ms_p99 - self.ttft_direct_ms_p99

    @property
    def tokens_per_core_s(self) -> float:
        return self.full_tokens_per_s / self.full_core_share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path, help="write the router's profile here")
    parser.add_argument("--serve", choices=("router", "direct"), help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        _serve(given.serve, given.told, given.profile)
        return
    report = run(given.streams, given.seconds, given.profile)
    derived = ("ttft_added_ms_median", "ttft_added_ms_p99", "tokens_per_core_s")
    print(json.dumps(asdict(report) | {name: getattr(report, name) for name in derived}, indent=1))  # noqa: T201
    if given.json:
        given.json.write_text(json.dumps(asdict(report)))


def run(streams: int, seconds: float, profile: Path | None = None) -> Report:
    """Measure the calls without the router and with it."""
    with _program("direct") as (address, _):
        direct = asyncio.run(_measure_direct(address, streams, seconds))
    with _program("router", *(("--profile", str(profile)) if profile else ())) as (address, router):
        return asyncio.run(_measure(address, router, streams, seconds, _quantiles(direct)))


@contextmanager
def _program(role: str, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """One of this file's servers in a process of its own: its address."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "address"
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_router",
            "--serve",
            role,
            "--told",
            str(told),
            *arguments,
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            try:
                while not (told.exists() and told.read_text()):
                    assert process.poll() is None, f"the {role} did not start"
                    time.sleep(0.05)
                yield told.read_text(), psutil.Process(process.pid)
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.wait(30)


def _serve(role: str, told: Path, profile: Path | None) -> None:
    """A server's process, until its standard input ends."""

    async def serve_router() -> None:
        router = Router(small_config(told.parent / "run", router={"port": 0}), small_model(), new_registry())
        await router.start()
        told.write_text(router.address)
        await asyncio.to_thread(sys.stdin.read)
        await router.close("measured")

    async def serve_direct() -> None:
        server = grpc.aio.server()
        add_InferenceServicer_to_server(Direct(), server)  # type: ignore[abstract]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        told.write_text(f"127.0.0.1:{port}")
        await asyncio.to_thread(sys.stdin.read)
        await server.stop(1.0)

    serve = serve_router if role == "router" else serve_direct
    if profile:
        with cProfile.Profile() as profiler:
            asyncio.run(serve())
        profiler.dump_stats(profile)
    else:
        asyncio.run(serve())


class Direct(InferenceServicer):  # its other methods are never called
    """Says a token to everybody at each step. request_id of a response: when the call came, and when this went out."""

    def __init__(self) -> None:
        self._step = asyncio.Event()
        self._clock = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        due_s = time.perf_counter()
        while True:
            due_s = max(due_s + STEP_S, time.perf_counter())
            await asyncio.sleep(due_s - time.perf_counter())
            step, self._step = self._step, asyncio.Event()
            self.now_s = time.perf_counter()
            step.set()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        came_s = time.perf_counter()
        for _ in range(request.sampling.max_tokens):
            await self._step.wait()
            yield pb.GenerateResponse(request_id=f"{came_s} {self.now_s}", token_ids=[97], text="a")


async def _measure_direct(address: str, streams: int, seconds: float) -> Sequence[float]:
    async with grpc.aio.insecure_channel(address) as clients:
        stub: Any = InferenceStub(clients)
        found: list[float] = []

        async def take(name: str, sent_s: float) -> int:
            first = await _stream(stub, name, ANSWER_TOKENS)
            came_s, out_s = map(float, first.told.split())
            found.append((came_s - sent_s) + (first.at_s - out_s))
            return first.num_tokens

        await _lines(take, streams, seconds)
        return found


async def _measure(
    address: str, router: psutil.Process, streams: int, seconds: float, direct_ms: tuple[float, float]
) -> Report:
    credits = Credits(block_size=16, num_blocks=100_000, max_num_seqs=2 * streams, max_step_tokens=8192)
    pace = {"step_s": STEP_S}
    async with (
        grpc.aio.insecure_channel(address) as workers,
        grpc.aio.insecure_channel(address) as clients,
        serving_peers(workers, credits, lambda _: pace["step_s"]) as attention,
    ):
        stub: Any = InferenceStub(clients)
        await _until_ready(stub)
        added_s, steady_tokens, steady_share = await _steady(stub, attention, router, streams, seconds)
        pace["step_s"] = 0.0
        full_tokens, full_share = await _full(stub, router, streams, seconds)
    steady = steady_tokens, steady_share
    return Report(streams, *direct_ms, *_quantiles(added_s), *steady, full_tokens, full_share)


def _quantiles(values_s: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile, milliseconds."""
    quantiles = statistics.quantiles(values_s, n=100)
    return 1e3 * quantiles[49], 1e3 * quantiles[98]


async def _until_ready(stub: Any) -> None:
    while True:
        try:
            await _stream(stub, "first", 1)
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.05)


async def _steady(
    stub: Any, attention: FakeAttention, router: psutil.Process, streams: int, seconds: float
) -> tuple[Sequence[float], float, float]:
    """What each first token spent on its way, tokens a second, and the router's share of a core."""
    found: list[float] = []

    async def take(name: str, sent_s: float) -> int:
        first = await _stream(stub, name, ANSWER_TOKENS)
        key = next(key for key in attention.first_s if key.startswith(f"{name}#"))
        came_s, out_s = attention.first_s.pop(key)
        found.append((came_s - sent_s) + (first.at_s - out_s))
        return first.num_tokens

    attention.first_s.clear()
    rate = _Rate(router)
    num_tokens = await _lines(take, streams, seconds)
    return (found, *rate.of(num_tokens))


async def _lines(take: Callable[[str, float], Awaitable[int]], streams: int, seconds: float) -> int:
    """Streams come one after the other on each of `streams` lines; how many tokens came in all."""
    think = random.Random(0)
    end_s = time.perf_counter() + seconds

    async def line(number: int) -> int:
        num_tokens = 0
        await asyncio.sleep(number * STEP_S * ANSWER_TOKENS / streams)  # spread over the life of an answer
        for turn in itertools.count():
            await asyncio.sleep(think.uniform(0, 2 * STEP_S))  # callers do not know of the worker's steps
            num_tokens += await take(f"s{number}-{turn}", time.perf_counter())
            if time.perf_counter() > end_s:
                break
        return num_tokens

    return sum(await asyncio.gather(*(line(number) for number in range(streams))))


async def _full(stub: Any, router: psutil.Process, streams: int, seconds: float) -> tuple[float, float]:
    """One long answer after the other, read as fast as they come."""
    num_tokens = 0
    rate = _Rate(router)

    async def line(number: int) -> None:
        nonlocal num_tokens
        for turn in itertools.count():
            async for response in stub.Generate(_request(f"f{number}-{turn}", LONG_TOKENS)):
                num_tokens += len(response.token_ids)

    tasks = [asyncio.create_task(line(number)) for number in range(streams)]
    await asyncio.sleep(seconds)
    found = rate.of(num_tokens)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


class _Rate:
    """Tokens a second, and cores used, since its making."""

    def __init__(self, router: psutil.Process) -> None:
        self._router = router
        self._started_s, self._used_s = time.perf_counter(), sum(router.cpu_times()[:2])

    def of(self, num_tokens: int) -> tuple[float, float]:
        span_s = time.perf_counter() - self._started_s
        return num_tokens / span_s, (sum(self._router.cpu_times()[:2]) - self._used_s) / span_s


@dataclass(frozen=True)
class _First:
    """The first response of a stream: when it came and its request id. num_tokens: of the whole stream."""

    at_s: float
    told: str
    num_tokens: int


async def _stream(stub: Any, name: str, max_tokens: int) -> _First:
    at_s, told, num_tokens = 0.0, "", 0
    async for response in stub.Generate(_request(name, max_tokens)):
        at_s, told = at_s or time.perf_counter(), told or response.request_id
        num_tokens += len(response.token_ids)
    return _First(at_s, told, num_tokens)


def _request(name: str, max_tokens: int) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return pb.GenerateRequest(text=PROMPT, request_id=name, sampling=sampling)


if __name__ == "__main__":
    main()
