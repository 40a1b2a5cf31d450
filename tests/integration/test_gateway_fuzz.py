"""Whatever comes in by HTTP or by the gateways' protocol: nothing crashes, nothing leaks."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.message import DecodeError
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated.vllm_engine_pb2_grpc import VllmEngineStub

from tests.integration.gateway_cells import INSTANT, MODEL, HttpCell, running_gateway
from tests.integration.http_fuzz import send_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NUM_HTTP, NUM_GRPC = 6000, 2000
SETTLE_S = 30.0
REFUSED_OR_ANSWERED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


@pytest.fixture(scope="module")
def cell(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCell]:
    logs = tmp_path_factory.mktemp("fuzz")
    with running_gateway(tiny_checkpoint, logs, router={"port": 0, "default_max_tokens": 8}) as started:
        yield started


def _ask(cell: HttpCell) -> None:
    found = cell.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=3, extra_body=INSTANT
    )
    assert found.usage
    assert found.usage.completion_tokens <= 3


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _num_fds(cell: HttpCell) -> dict[str, int]:
    return {child.name: psutil.Process(child.pid).num_fds() for child in cell.cluster.children}


def _used_tokens(cell: HttpCell) -> int:
    with grpc.insecure_channel(cell.cluster.router_address) as channel:
        stub: Any = VllmEngineStub(channel)  # type: ignore[no-untyped-call]
        (load,) = stub.GetLoads(pb.GetLoadsRequest(), timeout=10).loads
        return int(load.num_used_tokens)


def _check_nothing_is_left(cell: HttpCell, before: dict[str, int]) -> None:
    assert cell.cluster.wait(0) == []
    _until(lambda: (status := cell.grpc.status()).num_running + status.num_waiting == 0, "requests are left")
    _until(lambda: _used_tokens(cell) == 0, "KV blocks are left")
    # Idle connections between the processes themselves may come and go.
    _until(
        lambda: all(count <= before[name] + 4 for name, count in _num_fds(cell).items()), "file descriptors are left"
    )
    _ask(cell)


def test_malformed_http(cell: HttpCell) -> None:
    _ask(cell)
    before = _num_fds(cell)
    statuses = send_all(cell.url, seed=7, num_requests=NUM_HTTP)
    assert statuses[200] < NUM_HTTP / 2
    # Refused, and never as our fault. 501: what smg itself does not serve.
    assert {status for status in statuses if status >= 500} <= {501}, statuses
    assert statuses[0] < NUM_HTTP / 10, statuses
    _check_nothing_is_left(cell, before)


def test_random_messages_of_the_gateways_protocol(cell: HttpCell) -> None:
    _ask(cell)
    before, rng = _num_fds(cell), random.Random(11)
    with grpc.insecure_channel(cell.cluster.router_address) as channel:
        raw = channel.unary_stream("/vllm.grpc.engine.VllmEngine/Generate")
        sent = [_message(rng) for _ in range(NUM_GRPC)]
        codes = {(_is_message(message), _code_of(raw(message, timeout=2))) for message in sent}
    assert {code for is_message, code in codes if is_message} <= REFUSED_OR_ANSWERED
    assert {code for is_message, code in codes if not is_message} == {grpc.StatusCode.INVALID_ARGUMENT}
    _check_nothing_is_left(cell, before)


def _is_message(data: bytes) -> bool:
    try:
        pb.GenerateRequest.FromString(data)
    except DecodeError:
        return False
    return True


def _message(rng: random.Random) -> bytes:
    """Random bytes, or a valid message with random values."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(80))
    sampling = pb.SamplingParams(
        temperature=rng.choice([0, 1, -1, float("nan"), 1e9]),
        top_p=rng.choice([0, 1, -1, 2]),
        top_k=rng.choice([0, 5, 2**32 - 1]),
        max_tokens=rng.choice([0, 1, 3, 2**32 - 1]),
        n=rng.choice([0, 1, 2, 4000]),
        seed=rng.choice([0, -1, 2**31 - 1]),
        stop=rng.choice([[], [""], ["a"], ["a"] * 100]),
        logprobs=rng.choice([-1, 0, 5, 99]),
        logit_bias=rng.choice([{}, {5: 1.0}, {-1: 200.0}]),
        json_schema=rng.choice(["", "{", "{}", '{"type":"object"}', '{"type":1}']),
    )
    ids = [rng.choice([1, 50, 1793, 2043, 2045, 2**31, 4_000_000_000]) for _ in range(rng.randrange(6))]
    request = pb.GenerateRequest(
        request_id=rng.choice(["", "same", "\n", "x" * 400]),
        tokenized=pb.TokenizedInput(input_ids=ids),
        sampling_params=sampling,
        stream=rng.random() < 0.5,
    )
    return bytes(request.SerializeToString())


def _code_of(call: Any) -> grpc.StatusCode:
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        code = error.code()  # type: ignore[attr-defined]
        assert isinstance(code, grpc.StatusCode)
        return code
    return grpc.StatusCode.OK
