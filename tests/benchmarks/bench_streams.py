"""Many streams on the tiny demo: none lost, doubled or out of order; what one tenant waits beside another's thousand.

    python -m tests.benchmarks.bench_streams [--streams 500] [--seconds 120] [--json FILE]

Every stream is greedy, so what it must say is known from a run of its own before the load. Then a tenant with one
request is measured on the idle cell and beside a tenant with 1 000.
"""

import argparse
import asyncio
import itertools
import json
import statistics
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

NUM_PROMPTS, NEW_TOKENS = 32, 24
CROWD = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny"
        write_demo(checkpoint, DemoSpec.tiny())
        config = plan_cell({"checkpoint": checkpoint, "router": {"port": 0, "max_queue": 2048}})
        with LocalCluster(config, Path(folder) / "logs") as cluster:
            cluster.start()
            with Client(cluster.router_address) as client:
                wait_ready(cluster, client)
                found = asyncio.run(measure(cluster.router_address, given.streams, given.seconds))
                left = client.status()
                found["left_running"], found["left_waiting"] = left.num_running, left.num_waiting
            cluster.drain()
    print(json.dumps(found, indent=1))  # noqa: T201
    if given.json:
        given.json.write_text(json.dumps(found))


async def measure(address: str, streams: int, seconds: float) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)
        wanted = [(await say(stub, number)).ids for number in range(NUM_PROMPTS)]
        found = await _load(stub, wanted, streams, seconds)
        return found | await _one_beside_many(stub)


@dataclass(frozen=True)
class Said:
    """waited_s: in the queue. whole_s: until the last token."""

    ids: list[int]
    waited_s: float
    whole_s: float


async def say(stub: Any, number: int, tenant: str = "", name: str = "") -> Said:
    """What the cell says to prompt `number`. Raises when a stream is not whole."""
    prompt = [20 + number * 7 + place for place in range(8 + number % 5)]
    sampling = pb.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling, request_id=name)
    metadata = (("x-tenant", tenant),) if tenant else None
    started_s, ids, ends, waited_s = time.perf_counter(), list[int](), 0, 0.0
    async for response in stub.Generate(request, timeout=600, metadata=metadata):
        ids += response.token_ids
        ends += response.HasField("finish")
        waited_s = response.finish.timings.queue_s
    if ends != 1 or len(ids) != NEW_TOKENS:
        raise AssertionError(f"a stream of {len(ids)} tokens with {ends} ends")
    return Said(ids, waited_s, time.perf_counter() - started_s)


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


async def _one_beside_many(stub: Any) -> dict[str, float]:
    idle = [await say(stub, 3, "one") for _ in range(5)]
    # In a full batch every step is longer, whoever waits: how much of the difference that is, a batch alone shows.
    others = [asyncio.create_task(say(stub, number % NUM_PROMPTS, "one")) for number in range(CROWD // 20)]
    shared = [task.result() for task in others if await task]
    crowd = [asyncio.create_task(say(stub, number % NUM_PROMPTS, "many")) for number in range(CROWD)]
    await asyncio.sleep(1.0)
    beside = [await say(stub, 3, "one") for _ in range(3)]
    assert sum(task.done() for task in crowd) < CROWD, "the crowd left too early to be in the way"
    await asyncio.gather(*crowd)
    return {
        "idle_s": statistics.median(said.whole_s for said in idle),
        "in_a_batch_of_50_s": statistics.median(said.whole_s for said in shared),
        "beside_many_s": statistics.median(said.whole_s for said in beside),
        "beside_many_in_queue_s": max(said.waited_s for said in beside),
        "of_many_in_queue_s": statistics.median(task.result().waited_s for task in crowd),
    }


if __name__ == "__main__":
    main()
