"""A cell whose operator allows it answers without a lost shard, says so, and is exact again once it is back."""

import re
import urllib.request
from collections.abc import Callable

import grpc

from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.client import Client
from tests.integration.cells import CommandLineCell, greedy

PROMPT, NUM_TOKENS, BACK_S = [40, 50, 60], 400, 20.0


def test_tokens_without_a_shard_are_counted_and_flagged(up: Callable[..., CommandLineCell]) -> None:
    cell = up("--degraded-after", "0.01")
    with Client(cell.router_address) as client, grpc.insecure_channel(cell.router_address) as channel:
        undisturbed = greedy(client, PROMPT, NUM_TOKENS)
        sampling = pb.SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), sampling=sampling)
        call = InferenceStub(channel).Generate(request, timeout=60)
        responses = [next(call)]
        killed = cell.member("expert-3").pid
        cell.member("expert-3").kill()
        responses += call
        num_degraded = int(dict(call.trailing_metadata())["moonshard-degraded-tokens"])
        assert 0 < num_degraded <= len(PROMPT) + NUM_TOKENS
        assert responses[-1].finish.usage.completion_tokens == NUM_TOKENS
        cell.await_other("expert-3", killed, BACK_S)
        attention = client.status().workers[-1].metrics_address
        metrics = urllib.request.urlopen(f"http://{attention}/metrics", timeout=10).read().decode()
        counted = re.search(r"^moonshard_degraded_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE)
        assert counted
        assert float(counted[1]) == num_degraded
        _await_exact(client, undisturbed)


def _await_exact(client: Client, undisturbed: list[int]) -> None:
    """The link to the new process takes a moment longer than its joining; nothing degraded stays in the cache."""
    for _ in range(20):
        if greedy(client, PROMPT, NUM_TOKENS) == undisturbed:
            return
    raise AssertionError("the outputs did not become exact again")
