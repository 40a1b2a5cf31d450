"""A prefix that many requests share: computed once, the same answers as without a cache."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from moonshard import kernels
from moonshard.v1 import inference_pb2 as pb
from tests.integration.cells import Answered, ask, running_cell

SHARED_TOKENS, NUM_REQUESTS = 4000, 50


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 1792, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def answers(checkpoint: Path, log_dir: Path, prompts: list[list[int]], prefix_cache: bool) -> list[Answered]:
    sampling = pb.SamplingParams(temperature=1.0, seed=5, max_tokens=8, ignore_eos=True)
    limits = {"prefix_cache": prefix_cache}
    with (
        running_cell(checkpoint, log_dir, attention=limits) as (_, client),
        ThreadPoolExecutor(NUM_REQUESTS) as pool,
    ):
        return list(pool.map(lambda prompt: ask(client, prompt, sampling), prompts))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not kernels.available(), reason="only the native kernels promise the same bits")
def test_fifty_requests_compute_their_shared_prefix_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shared = tokens(SHARED_TOKENS, 1)
    prompts = [shared + tokens(3 + n, 100 + n) for n in range(NUM_REQUESTS)]
    cached = answers(tiny_checkpoint, tmp_path / "with", prompts, prefix_cache=True)
    assert sum(answer.num_cached for answer in cached) >= 0.98 * SHARED_TOKENS * NUM_REQUESTS
    uncached = answers(tiny_checkpoint, tmp_path / "without", prompts, prefix_cache=False)
    assert sum(answer.num_cached for answer in uncached) == 0
    assert [answer.token_ids for answer in cached] == [answer.token_ids for answer in uncached]
