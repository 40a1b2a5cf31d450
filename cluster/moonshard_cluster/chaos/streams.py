"""The load: greedy streams whose tokens and pauses are written down."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from moonshard.errors import MoonshardError
from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.client import Client

PROMPT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class StreamResult:
    """pause_s: the longest time between two messages with tokens; the wait for the first does not count."""

    number: int
    tokens: tuple[int, ...]
    pause_s: float
    error: str = ""


def prompt(number: int) -> list[int]:
    """Small token ids that every vocabulary has."""
    return [32 + (7 * number + 3 * place + place * place) % 64 for place in range(PROMPT_TOKENS)]


def run_stream(client: Client, number: int, max_tokens: int, timeout_s: float) -> StreamResult:
    sampling = pb.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt(number)), sampling=sampling)
    tokens: list[int] = []
    pause_s, last_s = 0.0, 0.0
    try:
        for response in client.generate(request, timeout_s):
            if not response.token_ids:
                continue
            now_s = time.monotonic()
            pause_s = max(pause_s, now_s - last_s) if tokens else 0.0
            tokens, last_s = [*tokens, *response.token_ids], now_s
    except MoonshardError as error:
        return StreamResult(number, tuple(tokens), pause_s, str(error))
    return StreamResult(number, tuple(tokens), pause_s)


def run_once(client: Client, num_streams: int, max_tokens: int, timeout_s: float) -> list[StreamResult]:
    """Every stream once, all at the same time."""
    with ThreadPoolExecutor(num_streams) as pool:
        return list(pool.map(lambda number: run_stream(client, number, max_tokens, timeout_s), range(num_streams)))


def run_until(
    over: threading.Event, client: Client, num_streams: int, max_tokens: int, timeout_s: float
) -> Callable[[], Sequence[StreamResult]]:
    """Every stream over and over, at least once, until `over`; call the result to wait for the last."""
    pool = ThreadPoolExecutor(num_streams)

    def repeat(number: int) -> list[StreamResult]:
        found = [run_stream(client, number, max_tokens, timeout_s)]
        while not over.is_set():
            found.append(run_stream(client, number, max_tokens, timeout_s))
        return found

    running = [pool.submit(repeat, number) for number in range(num_streams)]

    def results() -> Sequence[StreamResult]:
        with pool:
            return [result for future in running for result in future.result()]

    return results
