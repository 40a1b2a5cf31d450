"""Ten times more than a cell can do, offered to the real one: what is left for answers that are in time, and what
everybody else is told. Open loop: who comes next does not wait for who came before.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from moonshard.v1 import inference_pb2 as pb

# Long answers, so that ten times the cell's capacity is no more requests than a client beside it on the same cores can
# make without being the overload itself.
NEW_TOKENS, PROMPT_TOKENS = 256, 10
PATIENCE_S = 20.0
# Enough to fill every slot of the cell and a line before it.
CLOSED_LINES = 128
STATUS_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True)
class Ended:
    """code: OK for a whole answer. untyped: what an end that is no answer of the router's says, "" for those that are.
    whole_s: from the request to its end. at_s: of the end, on perf_counter's clock.
    """

    code: str
    untyped: str
    whole_s: float
    at_s: float


async def ask(stub: Any, number: int, patience_s: float) -> Ended:
    """One request with a deadline, whatever becomes of it."""
    sampling = pb.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    prompt = [20 + (number * 7 + place) % 200 for place in range(PROMPT_TOKENS)]
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
    started_s, num_tokens, finished = time.perf_counter(), 0, False
    try:
        async for response in stub.Generate(request, timeout=patience_s):
            num_tokens += len(response.token_ids)
            finished |= response.HasField("finish")
        code, untyped = ("OK", "") if finished and num_tokens == NEW_TOKENS else ("CUT", f"{num_tokens} tokens")
    except grpc.aio.AioRpcError as error:
        code, untyped = error.code().name, "" if _is_typed(error) else error.debug_error_string()
    now_s = time.perf_counter()
    return Ended(code, untyped, now_s - started_s, now_s)


def _is_typed(error: grpc.aio.AioRpcError) -> bool:
    """RESOURCE_EXHAUSTED says when to try again; a deadline that passed under way is one, whoever noticed it first."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return True
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return False
    trailing: Any = error.trailing_metadata() or ()
    details = next((value for key, value in trailing if key == STATUS_DETAILS), None)
    if not isinstance(details, bytes):
        return False
    hint = RetryInfo()
    found = Status.FromString(details).details
    return bool(found) and found[0].Unpack(hint) and hint.retry_delay.ToMilliseconds() > 0


async def capacity(stub: Any, seconds: float) -> float:
    """Answers a second while there is always another request, the same client counting."""
    end_s = time.perf_counter() + seconds

    async def line(number: int) -> list[Ended]:
        found = []
        while time.perf_counter() < end_s:
            found.append(await ask(stub, number, 60.0))
        return found

    begin_s = end_s - 0.8 * seconds  # the first fifth fills the batch
    ended = [e for line_ in await asyncio.gather(*(line(n) for n in range(CLOSED_LINES))) for e in line_]
    assert all(e.code == "OK" for e in ended), Counter(e.code for e in ended)
    return sum(begin_s <= e.at_s < end_s for e in ended) / (end_s - begin_s)


async def overload(stub: Any, rate: float, times: float, seconds: float) -> dict[str, Any]:
    """Arrivals at `times` the rate, by chance and for so many seconds; good answers are counted behind the first
    fifth."""
    draw, asked = random.Random(0), list[asyncio.Task[Ended]]()
    start_s = time.perf_counter()
    next_s = start_s
    while next_s < start_s + seconds:
        await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        asked.append(asyncio.create_task(ask(stub, len(asked), PATIENCE_S)))
        next_s += draw.expovariate(times * rate)
    offered_s = time.perf_counter() - start_s
    ended = [await task for task in asked]
    begin_s, end_s = start_s + 0.2 * seconds, start_s + seconds
    good = [e for e in ended if e.code == "OK" and begin_s <= e.at_s < end_s]
    waits = sorted(e.whole_s for e in ended if e.code == "RESOURCE_EXHAUSTED")
    goodput = len(good) / (end_s - begin_s)
    return {
        "offered_times": times,
        "offered_per_s": round(len(asked) / offered_s, 1),
        "goodput_per_s": round(goodput, 2),
        "share_of_capacity": round(goodput / rate, 3),
        "ends": dict(Counter(e.code for e in ended)),
        "untyped": dict(Counter(e.untyped for e in ended if e.untyped)),
        "good_p50_s": round(sorted(e.whole_s for e in good)[len(good) // 2], 2) if good else None,
        "refusal_p50_ms": round(1e3 * waits[len(waits) // 2], 1) if waits else None,
        "refusal_p99_ms": round(1e3 * waits[len(waits) * 99 // 100], 1) if waits else None,
    }


async def measure_overload(stub: Any, seconds: float, times: float) -> dict[str, Any]:
    """The cores' shares of client and router tell what of the machine the refusals took."""
    await capacity(stub, 5.0)  # warms up
    used = [_cpu_s()]
    before = await capacity(stub, seconds)
    used.append(_cpu_s())
    found = await overload(stub, before, times, seconds)
    used.append(_cpu_s())
    after = await capacity(stub, seconds)
    return {
        "capacity_before_per_s": round(before, 2),
        "capacity_after_per_s": round(after, 2),
        "cores_at_capacity": _shares(used[0], used[1]),
        "cores_at_overload": _shares(used[1], used[2]),
    } | found


def _cpu_s() -> dict[str, float]:
    """Processor time so far of the client, the router and all others of the cell; and the clock."""
    found = {"client": time.process_time(), "router": 0.0, "workers": 0.0, "clock": time.perf_counter()}
    for child in psutil.Process().children(recursive=True):
        name = "router" if "moonshard.router" in child.cmdline() else "workers"
        times = child.cpu_times()
        found[name] += times.user + times.system
    return found


def _shares(begin: dict[str, float], end: dict[str, float]) -> dict[str, float]:
    span_s = end["clock"] - begin["clock"]
    return {name: round((end[name] - begin[name]) / span_s, 2) for name in begin if name != "clock"}
