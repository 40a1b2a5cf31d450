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
from typing import Any

import grpc

from moonshard.errors import Unavailable
from moonshard.rpc.tls import open_async_channel
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.access import Access, Metadata
from moonshard_cluster.client import translate

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
    address: str,
    prefill: int,
    batches: Sequence[int],
    new_tokens: int,
    rounds: int,
    timeout_s: float,
    access: Access | None = None,
    seed: int = 0,
) -> list[Speed]:
    """All figures, the rounds interleaved so that a busy minute of the machine hits none of them alone.

    access: certificates and key, plain text and none when None. seed: of the prompts; a repeated one is cached.
    """
    found: dict[str, list[float]] = {}
    access = access or Access()
    async with open_async_channel(address, access.tls) as channel:
        try:
            async with asyncio.timeout(timeout_s):
                streams = await _Streams.of(InferenceStub(channel), access.api_metadata, seed)
                await streams.decode(1, 8)  # warm-up, not counted
                for _ in range(rounds):
                    found.setdefault(f"prefill {prefill}", []).append(await streams.prefill(prefill))
                    for batch in batches:
                        found.setdefault(f"decode b{batch}", []).append(await streams.decode(batch, new_tokens))
        except grpc.aio.AioRpcError as error:
            raise translate(error, address) from None
        except TimeoutError:
            raise Unavailable(f"the measurement did not end within {timeout_s:g} s") from None
    return [Speed.of(name, values) for name, values in found.items()]


class _Streams:
    """Random prompts over one channel."""

    def __init__(self, stub: Any, metadata: Metadata, vocab_size: int, seed: int) -> None:
        # grpc-stubs knows the synchronous call only: hence Any.
        self._stub = stub
        self._metadata = metadata
        # The last 256 ids of the Kimi vocabularies are special; any other token costs the same.
        self._num_ids = max(1, vocab_size - 256)
        self._draw = random.Random(seed)

    @classmethod
    async def of(cls, stub: Any, metadata: Metadata, seed: int) -> "_Streams":
        model = await stub.GetModel(pb.GetModelRequest(), metadata=metadata)
        return cls(stub, metadata, model.vocab_size, seed)

    async def prefill(self, num_tokens: int) -> float:
        """Prompt tokens a second."""
        started = time.perf_counter()
        (arrival,) = await self._stream(self._prompt(num_tokens), 1)
        return num_tokens / (arrival - started)

    async def decode(self, batch: int, new_tokens: int) -> float:
        """Tokens a second of so many streams together."""
        prompts = [self._prompt(PROMPT_TOKENS) for _ in range(batch)]
        streams = await asyncio.gather(*(self._stream(prompt, new_tokens) for prompt in prompts))
        begin, end = max(stream[0] for stream in streams), min(stream[-1] for stream in streams)
        if end <= begin:
            raise Unavailable(f"{batch} streams never decoded together; more --new-tokens would help")
        return sum(begin < arrival <= end for stream in streams for arrival in stream) / (end - begin)

    def _prompt(self, num_tokens: int) -> list[int]:
        return [self._draw.randrange(self._num_ids) for _ in range(num_tokens)]

    async def _stream(self, prompt: list[int], max_tokens: int) -> list[float]:
        """Times at which the tokens arrived."""
        sampling = pb.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
        arrivals: list[float] = []
        async for response in self._stub.Generate(request, metadata=self._metadata):
            arrivals += [time.perf_counter()] * len(response.token_ids)
        return arrivals
