"""What batching and the prefix cache are worth on the small demo: real cells of this machine, timed at the client.

    python -m tests.benchmarks.bench_batching [--json FILE]

Batching: 32 prompts of 32 tokens, 64 tokens each, one after another and all at once. Prefix cache: 50 requests at once
that share 4 000 tokens, with the cache and without. Outputs must be the same; the script says whether they are.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.client import Client
from moonshard_cluster.demo.cache import ensure_demo
from moonshard_cluster.demo.spec import DemoSpec
from tests.integration.cells import Answered, ask, running_cell

NUM_ALONE, NUM_SHARING, SHARED_TOKENS, ROUNDS = 32, 50, 4000, 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    checkpoint = ensure_demo(DemoSpec.small(), lambda done, total: None)
    figures = {"batching": batching(checkpoint), "prefix_cache": prefix_cache(checkpoint)}
    text = json.dumps(figures, indent=2)
    print(text)  # noqa: T201
    if given.json:
        given.json.write_text(text)


def batching(checkpoint: Path) -> list[dict[str, float | bool]]:
    prompts = [tokens(32, seed) for seed in range(NUM_ALONE)]
    rounds = []
    with running_cell(checkpoint, Path(tempfile.mkdtemp())) as (_, client):
        timed(client, prompts[:2], 8, 1)
        for _ in range(ROUNDS):
            alone_s, alone = timed(client, prompts, 64, 1)
            together_s, together = timed(client, prompts, 64, NUM_ALONE)
            same = [a.token_ids for a in alone] == [b.token_ids for b in together]
            rounds.append(
                {"alone_s": alone_s, "together_s": together_s, "ratio": alone_s / together_s, "same_outputs": same}
            )
    return rounds


def prefix_cache(checkpoint: Path) -> dict[str, float | bool]:
    shared = tokens(SHARED_TOKENS, 1)
    prompts = [shared + tokens(20 + n, 100 + n) for n in range(NUM_SHARING)]
    found = {}
    for on in (True, False):
        limits = {"attention": {"prefix_cache": on}}
        with running_cell(checkpoint, Path(tempfile.mkdtemp()), **limits) as (_, client):
            found[on] = timed(client, prompts, 16, NUM_SHARING)
    cached = sum(answer.num_cached for answer in found[True][1])
    return {
        "cached_s": found[True][0],
        "uncached_s": found[False][0],
        "cached_share": cached / (SHARED_TOKENS * NUM_SHARING),
        "same_outputs": [a.token_ids for a in found[True][1]] == [a.token_ids for a in found[False][1]],
    }


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 1792, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def timed(client: Client, prompts: Sequence[list[int]], max_tokens: int, at_once: int) -> tuple[float, list[Answered]]:
    sampling = pb.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    with ThreadPoolExecutor(at_once) as pool:
        start_s = time.perf_counter()
        answers = list(pool.map(lambda prompt: ask(client, prompt, sampling), prompts))
        return time.perf_counter() - start_s, answers


if __name__ == "__main__":
    main()
