"""More sequences than KV blocks, through a whole cell: some are preempted, and no answer shows it."""

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moonshard import kernels
from moonshard.v1 import control_pb2
from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.client import Client
from tests.integration.cells import ANSWER_S, running_cell

NUM_REQUESTS, MAX_TOKENS = 20, 60

Answer = tuple[list[int], list[float]]


def answer(client: Client, number: int) -> Answer:
    """Tokens and their log-probabilities, in the order of the stream."""
    sampling = pb.SamplingParams(
        temperature=1.2, seed=number, max_tokens=MAX_TOKENS, ignore_eos=True, frequency_penalty=0.4, logprobs=0
    )
    prompt = pb.TokenIds(ids=range(number, 2 * number + 10))
    responses = list(client.generate(pb.GenerateRequest(token_ids=prompt, sampling=sampling), ANSWER_S))
    scored = [found for response in responses for found in response.logprobs]
    tokens = [token for response in responses for token in response.token_ids]
    assert [found.token_id for found in scored] == tokens
    return tokens, [found.logprob for found in scored]


def metrics(client: Client) -> dict[str, float]:
    worker = next(w for w in client.status().workers if w.role == control_pb2.ROLE_ATTENTION)
    with urllib.request.urlopen(f"http://{worker.metrics_address}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.slow
@pytest.mark.skipif(not kernels.available(), reason="only the native kernels promise the same bits")
def test_a_cell_with_too_few_blocks_answers_as_one_with_plenty(tiny_checkpoint: Path, tmp_path: Path) -> None:
    found: dict[int, list[Answer]] = {}
    for num_blocks in (2000, 20):
        limits = {"num_blocks": num_blocks, "block_size": 8, "max_num_seqs": NUM_REQUESTS}
        with (
            running_cell(tiny_checkpoint, tmp_path / str(num_blocks), attention=limits) as (_, client),
            ThreadPoolExecutor(NUM_REQUESTS) as pool,
        ):
            found[num_blocks] = list(pool.map(lambda number: answer(client, number), range(NUM_REQUESTS)))
            told = metrics(client)
        assert (told["moonshard_preemptions_total"] > 0) == (num_blocks == 20)
        assert told["moonshard_kv_cache_usage_ratio"] == 0
        assert told["moonshard_engine_requests_running"] == 0
    assert found[20] == found[2000]
    assert all(len(tokens) == MAX_TOKENS for tokens, _ in found[20])
