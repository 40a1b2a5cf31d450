"""Experts move under fifty streams: what it costs meanwhile and what it is worth afterwards, on a skewed demo.

    python -m tests.benchmarks.bench_rebalance [--width 512] [--shards 2] [--tokens 1500] [--rounds 2] [--json FILE]

Every stream is greedy and says the same in every run, or the script says so. A round: a run in blocks, a run in the
middle of which the live load is planned for and the plan applied, a run after it, and all back into blocks. Iteration
times are gaps between a stream's messages at the client; p10 is what they are while nobody else uses the machine. The
gates are skewed so that half of the shards, by all of their experts, has three times the rows of the other half; shards
have one thread each, so that on a machine with as many cores as shards each has a core, and the busiest shard is what
everybody waits for. Experts are wider than the small demo's, so that they and not attention take most of the time.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from moonshard.placement import Layer, contiguous
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.client import Client
from moonshard_cluster.commands.placement import APPLY_S, Wishes, apply_request, paying, propose_all
from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec
from moonshard_cluster.load.matrix import from_response
from moonshard_cluster.load.placements import from_cell
from tests.benchmarks.skewed_demo import skew
from tests.integration.cells import OPEN, running_cell

NUM_STREAMS, PROMPT, RATIO, ANSWER_S = 50, 16, 3.0, 600.0
WISHES = Wishes(None, 1, "rows", NUM_STREAMS, 10.0, 0.0, None, 600.0)


@dataclass(frozen=True)
class Run:
    """ids and arrivals_s: by stream; of each message with a token, when it came."""

    ids: list[list[int]]
    arrivals_s: list[list[float]]

    def gaps_ms(self, start_s: float = 0.0, stop_s: float = 1e18) -> list[float]:
        """Between a stream's messages, while all streams run."""
        start_s = max(start_s, max(times[3] for times in self.arrivals_s))
        stop_s = min(stop_s, min(times[-1] for times in self.arrivals_s))
        pairs = (pair for times in self.arrivals_s for pair in itertools.pairwise(times))
        return [1000 * (b - a) for a, b in pairs if start_s <= b <= stop_s]

    def tokens_per_s(self) -> float:
        start_s = max(times[3] for times in self.arrivals_s)
        stop_s = min(times[-1] for times in self.arrivals_s)
        return sum(start_s < at <= stop_s for times in self.arrivals_s for at in times) / (stop_s - start_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="of the experts; the small demo's own is 128")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "skewed"
        write_demo(checkpoint, DemoSpec.small(moe_intermediate_size=given.width))
        half = 384 // given.shards * (given.shards // 2)
        skew(checkpoint, given.shards, RATIO, half)
        experts = {"num_threads": 1, "redundant_slots": 32 // given.shards}
        blocks = NUM_STREAMS * (given.tokens // 16 + 3)
        shape = {"num_shards": given.shards, "attention": {"num_blocks": blocks}}
        with running_cell(checkpoint, Path(folder), **shape, experts=experts, metrics=OPEN) as (_, client):
            ask(client, 50)
            rounds = [measure(client, given.tokens) for _ in range(given.rounds)]
    names = [name for name in rounds[0] if isinstance(rounds[0][name], float)]
    found = {"rounds": rounds, "medians": {name: statistics.median(it[name] for it in rounds) for name in names}}
    print(json.dumps(found, indent=1))  # noqa: T201
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def measure(client: Client, num_tokens: int) -> dict[str, Any]:
    """One round."""
    started_s = time.monotonic()
    before = ask(client, num_tokens)
    window_s = time.monotonic() - started_s
    load = from_response(client.load(window_s))
    changes = propose_all(load, from_cell(client.placement()), WISHES)
    wanted = paying(load, changes)
    during, (start_s, stop_s, num_loaded) = asyncio.run(_move_meanwhile(client, num_tokens, wanted))
    started_s = time.monotonic()
    after = ask(client, num_tokens)
    load_after = from_response(client.load(time.monotonic() - started_s))
    blocks: Layer = contiguous(load.rows_LE.shape[1], len(load.ranks))
    list(client.apply_placement(apply_request(dict.fromkeys(load.layers, blocks), 0), APPLY_S))
    calm, moving, later = before.gaps_ms(), during.gaps_ms(start_s, stop_s), after.gaps_ms()
    shard_rows = sorted(load.rows_SL.sum(axis=1).tolist())
    return {
        "same_outputs": before.ids == during.ids == after.ids,
        "busiest_by_idlest_shard": shard_rows[-1] / shard_rows[0],
        "balancedness_before": float(load.balancedness_L().mean()),
        "balancedness_planned": statistics.mean(it.balance_after for it in changes),
        "balancedness_after": float(load_after.balancedness_L().mean()),
        "copies_loaded": num_loaded,
        "moving_s": stop_s - start_s,
        "moved_while_all_ran": stop_s < min(times[-1] for times in during.arrivals_s),
        "iteration_ms_before": statistics.mean(calm),
        "iteration_ms_moving": statistics.mean(moving),
        "iteration_ms_after": statistics.mean(later),
        **{
            f"iteration_ms_{name}_p{share}": sorted(gaps)[share * len(gaps) // 100]
            for name, gaps in (("before", calm), ("moving", moving), ("after", later))
            for share in (10, 99)
        },
        "moving_by_before": statistics.mean(moving) / statistics.mean(calm),
        "tokens_per_s_before": before.tokens_per_s(),
        "tokens_per_s_after": after.tokens_per_s(),
        "after_by_before": after.tokens_per_s() / before.tokens_per_s(),
    }


def ask(client: Client, num_tokens: int) -> Run:
    return asyncio.run(_streams(client.address, num_tokens, asyncio.Event()))


async def _move_meanwhile(
    client: Client, num_tokens: int, wanted: dict[int, Layer]
) -> tuple[Run, tuple[float, float, int]]:
    """Experts move once every stream has a fifth of its tokens."""
    begun = asyncio.Event()
    streams = asyncio.create_task(_streams(client.address, num_tokens, begun))
    await begun.wait()
    start_s = time.monotonic()
    progress = await asyncio.to_thread(lambda: list(client.apply_placement(apply_request(wanted, 0), APPLY_S)))
    stop_s = time.monotonic()
    return await streams, (start_s, stop_s, progress[-1].num_loaded)


async def _streams(address: str, num_tokens: int, begun: asyncio.Event) -> Run:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)
        told = await asyncio.gather(*(_stream(stub, number, num_tokens, begun) for number in range(NUM_STREAMS)))
    return Run([ids for ids, _ in told], [times for _, times in told])


async def _stream(stub: Any, number: int, num_tokens: int, begun: asyncio.Event) -> tuple[list[int], list[float]]:
    prompt = [(number * 31 + at * 7) % 1500 for at in range(PROMPT)]
    sampling = pb.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
    ids: list[int] = []
    times: list[float] = []
    async for response in stub.Generate(request, timeout=ANSWER_S):
        ids += response.token_ids
        times += [time.monotonic()] * len(response.token_ids)
        if len(ids) > num_tokens // 5:
            begun.set()
    return ids, times


if __name__ == "__main__":
    main()
