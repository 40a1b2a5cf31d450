"""Speed of a running cell, counted at the client.

prefill: tokens of one prompt over the time to its first token. decode at batch B: B streams at once; the tokens that
arrive between the moment the last stream has its first token and the moment the first stream ends, over that time.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from moonshard.errors import Unavailable
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceStub

PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second over `rounds` runs."""

    name: str
    median: float
    best: float
    rounds: int

    @classmethod
    def of(cls, name: str, values: Sequence[float]) -> "Speed":
        return cls(name, statistics.median(values), max(values), len(values))


async def measure(
    address: str, prefill: int, batches: Sequence[int], new_tokens: int, rounds: int, timeout_s: float
) -> list[Speed]:
    """All figures, the rounds interleaved so that a busy minute of the machine hits none of them alone."""
    found: dict[str, list[float]] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceStub(channel)
        model = await stub.GetModel(pb.GetModelRequest(), timeout=timeout_s)
        draw = random.Random(0)
        try:
            async with asyncio.timeout(timeout_s):
                await _decode(stub, model.vocab_size, 1, 8, draw)  # warm-up, not counted
                for _ in range(rounds):
                    speed = await _prefill(stub, model.vocab_size, prefill, draw)
                    found.setdefault(f"prefill {prefill}", []).append(speed)
                    for batch in batches:
                        speed = await _decode(stub, model.vocab_size, batch, new_tokens, draw)
                        found.setdefault(f"decode b{batch}", []).append(speed)
        except TimeoutError:
            raise Unavailable(f"the measurement did not end within {timeout_s:g} s") from None
    return [Speed.of(name, values) for name, values in found.items()]


async def _prefill(stub: InferenceStub, vocab_size: int, num_tokens: int, draw: random.Random) -> float:
    started = time.perf_counter()
    (arrival,) = await _stream(stub, _prompt(vocab_size, num_tokens, draw), 1)
    return num_tokens / (arrival - started)


async def _decode(stub: InferenceStub, vocab_size: int, batch: int, new_tokens: int, draw: random.Random) -> float:
    prompts = [_prompt(vocab_size, PROMPT_TOKENS, draw) for _ in range(batch)]
    streams = await asyncio.gather(*(_stream(stub, prompt, new_tokens) for prompt in prompts))
    begin, end = max(stream[0] for stream in streams), min(stream[-1] for stream in streams)
    if end <= begin:
        raise Unavailable(f"{batch} streams never decoded together; more --new-tokens would help")
    return sum(begin < arrival <= end for stream in streams for arrival in stream) / (end - begin)


def _prompt(vocab_size: int, num_tokens: int, draw: random.Random) -> list[int]:
    # The last 256 ids of the Kimi vocabularies are special; any other token costs the same.
    return [draw.randrange(max(1, vocab_size - 256)) for _ in range(num_tokens)]


async def _stream(stub: InferenceStub, prompt: list[int], max_tokens: int) -> list[float]:
    """Times at which the tokens arrived."""
    sampling = pb.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
    arrivals: list[float] = []
    # grpc-stubs knows the synchronous call only.
    async for response in stub.Generate(request):  # type: ignore[attr-defined]
        arrivals += [time.perf_counter()] * len(response.token_ids)
    return arrivals
