"""Many streams on the tiny demo: none lost, doubled or out of order; what one tenant waits beside another's thousand.

    python -m tests.benchmarks.bench_streams [--streams 500] [--seconds 120] [--json FILE]
    python -m tests.benchmarks.bench_streams --overload [--times 10] [--seconds 60]

Every stream is greedy, so what it must say is known from a run of its own before the load. Then a tenant with one
request is measured on the idle cell and beside a tenant with 1 000.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.client import Client
from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec
from moonshard_cluster.local.plan import plan_cell
from moonshard_cluster.local.progress import wait_ready
from moonshard_cluster.local.supervisor import LocalCluster
from tests.benchmarks.overload import measure_overload

NUM_PROMPTS, NEW_TOKENS = 32, 24
CROWD = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--overload", action="store_true", help="offer --times as much as the cell can do instead")
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.crowd:
        asyncio.run(_crowd(given.crowd))
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny"
        write_demo(checkpoint, DemoSpec.tiny())
        config = plan_cell({"checkpoint": checkpoint, "router": {"port": 0, "max_queue": 2048}})
        with LocalCluster(config, Path(folder) / "logs") as cluster:
            cluster.start()
            with Client(cluster.router_address) as client:
                wait_ready(cluster, client)
                found = asyncio.run(measure(cluster.router_address, given))
                left = client.status()
                found["left_running"], found["left_waiting"] = left.num_running, left.num_waiting
            cluster.drain()
    print(json.dumps(found, indent=1))  # noqa: T201
    if given.json:
        given.json.write_text(json.dumps(found))


async def measure(address: str, given: argparse.Namespace) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)
        if given.overload:
            return await measure_overload(stub, given.seconds, given.times)
        wanted = [(await say(stub, number)).ids for number in range(NUM_PROMPTS)]
        found = await _load(stub, wanted, given.streams, given.seconds)
        return found | await _one_beside_many(stub, address)


@dataclass(frozen=True)
class Said:
    """waited_s: in the queue. first_s: until the first token came to the client. whole_s: until the last."""

    ids: list[int]
    waited_s: float
    first_s: float
    whole_s: float


async def say(stub: Any, number: int, tenant: str = "", name: str = "") -> Said:
    """What the cell says to prompt `number`. Raises when a stream is not whole."""
    prompt = [20 + number * 7 + place for place in range(8 + number % 5)]
    sampling = pb.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling, request_id=name)
    metadata = (("x-tenant", tenant),) if tenant else None
    started_s, ids, ends, waited_s, first_s = time.perf_counter(), list[int](), 0, 0.0, 0.0
    async for response in stub.Generate(request, timeout=600, metadata=metadata):
        first_s = first_s or time.perf_counter() - started_s
        ids += response.token_ids
        ends += response.HasField("finish")
        waited_s = response.finish.timings.queue_s
    if ends != 1 or len(ids) != NEW_TOKENS:
        raise AssertionError(f"a stream of {len(ids)} tokens with {ends} ends")
    return Said(ids, waited_s, first_s, time.perf_counter() - started_s)


async def _load(stub: Any, wanted: Sequence[list[int]], streams: int, seconds: float) -> dict[str, Any]:
    done, wrong = itertools.count(), itertools.count()
    end_s = time.perf_counter() + seconds

    async def line(number: int) -> None:
        for turn in itertools.count():
            if time.perf_counter() > end_s:
                return
            which = (number + turn) % len(wanted)
            said = await say(stub, which, name=f"s{number}-{turn}")
            next(done)
            if said.ids != wanted[which]:
                next(wrong)

    started_s = time.perf_counter()
    await asyncio.gather(*(line(number) for number in range(streams)))
    span_s, num_done = time.perf_counter() - started_s, next(done)
    return {
        "streams": streams,
        "seconds": round(span_s, 1),
        "answers": num_done,
        "wrong_answers": next(wrong),
        "tokens_per_s": round(num_done * NEW_TOKENS / span_s, 1),
    }


async def _one_beside_many(stub: Any, address: str) -> dict[str, Any]:
    """The crowd is a process of its own: one client would have the one wait for its own thousand."""
    idle = [await say(stub, 3, "one") for _ in range(20)]
    # In a full batch every step is longer, whoever waits: how much of the difference that is, a batch alone shows.
    others = [asyncio.create_task(say(stub, number % NUM_PROMPTS, "one")) for number in range(CROWD // 20)]
    shared = [task.result() for task in others if await task]
    command = [sys.executable, "-m", "tests.benchmarks.bench_streams", "--crowd", address]
    crowd = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert crowd.stdout is not None
    await crowd.stdout.readline()  # many have their answers and the others are in the line
    almost_done = asyncio.create_task(crowd.stdout.readline())
    beside = []
    while not almost_done.done():
        beside.append(await say(stub, 3, "one"))
    of_many = json.loads(await crowd.stdout.readline())
    await crowd.wait()
    return {
        "one_idle": _seconds(idle),
        "one_in_a_batch_of_50": _seconds(shared),
        "one_beside_many": _seconds(beside),
        "of_many": of_many,
        "first_token_times_idle": round(_median(beside, "first_s") / _median(idle, "first_s"), 2),
        "added_to_the_first_token_s": round(_median(beside, "first_s") - _median(idle, "first_s"), 4),
    }


async def _crowd(address: str) -> None:
    """Prints a line when a fifth of it is done, one at four fifths, and at last what they waited."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)
        crowd = [asyncio.create_task(say(stub, number % NUM_PROMPTS, "many")) for number in range(CROWD)]
        said = []
        for done in asyncio.as_completed(crowd):
            said.append(await done)
            if len(said) in (CROWD // 5, CROWD * 4 // 5):
                print(len(said), flush=True)  # noqa: T201
        print(json.dumps(_seconds(said)), flush=True)  # noqa: T201


def _seconds(found: Sequence[Said]) -> dict[str, float]:
    medians = {name: round(_median(found, name), 4) for name in ("waited_s", "first_s", "whole_s")}
    return medians | {"first_max_s": round(max(said.first_s for said in found), 4), "of": len(found)}


def _median(found: Sequence[Said], name: str) -> float:
    return float(statistics.median(getattr(said, name) for said in found))


if __name__ == "__main__":
    main()
