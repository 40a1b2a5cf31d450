"""A traced request on a real cell: its experts are the reference's, and its shards those that hold them."""

import json
from pathlib import Path

import grpc
import pytest
import torch

from moonshard.model.reference import Reference
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.client import Client
from moonshard_cluster.local.supervisor import LocalCluster
from tests.integration.cells import ANSWER_S, moonshard
from tests.integration.test_exact_counts import MARGIN_MIN, NUM_LAYERS, log_gates

NEW_TOKENS = 6


def test_a_traced_request_tells_its_experts_and_what_it_waited_for(
    tiny_checkpoint: Path, shared_cell: tuple[LocalCluster, Client]
) -> None:
    cluster, client = shared_cell
    reference, draw = Reference.load(tiny_checkpoint), torch.Generator().manual_seed(11)
    with pytest.MonkeyPatch.context() as patch:
        log = log_gates(patch)
        while not log or min(margin for _, margin in log) < MARGIN_MIN:
            log.clear()
            prompt = torch.randint(0, 1700, (7,), generator=draw).tolist()
            expected = reference.greedy(prompt, NEW_TOKENS)
    sampling = pb.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    asked = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling, request_id="slow-one")
    with grpc.insecure_channel(cluster.router_address) as channel:
        call = InferenceStub(channel).Generate(asked, timeout=ANSWER_S, metadata=(("x-trace", "1"),))
        assert [token for response in call for token in response.token_ids] == expected
    (found,) = client.trace("slow-one").sequences
    assert (found.num_steps, len(found.steps)) == (NEW_TOKENS, NEW_TOKENS)
    for number, step in enumerate(found.steps):
        assert (step.position, step.num_tokens) == ((0, 7) if number == 0 else (6 + number, 1))
        assert len(step.layers) == NUM_LAYERS
        assert step.seconds >= sum(route.combine_s for route in step.layers)
        for place, route in enumerate(step.layers):
            ids, _ = log[number * NUM_LAYERS + place]
            assert set(route.experts) <= set(ids.tolist())
            assert len(set(route.experts)) == min(32, len(set(ids.tolist())))
            assert len(route.wait_s) == 8
            held = {expert // 48 for expert in ids.tolist()}
            assert {shard for shard, wait_s in enumerate(route.wait_s) if wait_s} <= held
    shown = moonshard("trace", "slow-one", "--router", cluster.router_address)
    assert shown.returncode == 0, shown.stderr
    assert f"slow-one, choice 0: {NEW_TOKENS} iterations" in shown.stdout
    assert "last shard" in shown.stdout
    listed = moonshard("trace", "--router", cluster.router_address)
    assert "slow-one" in listed.stdout.split()
    whole = json.loads(moonshard("trace", "slow-one", "--json", "--router", cluster.router_address).stdout)
    assert whole["sequences"][0]["numSteps"] == NEW_TOKENS
    unknown = moonshard("trace", "nobody", "--router", cluster.router_address)
    assert unknown.returncode == 2
    assert "no trace of 'nobody' is kept" in unknown.stderr
