"""The same prompts give the same tokens from the reference and from every transport, alone and in company."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from moonshard.model.reference import Reference
from moonshard_cluster.client import Client
from tests.integration.cells import greedy, running_cell

NUM_PROMPTS, MAX_TOKENS, CROWD = 20, 64, 16


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 90, (NUM_PROMPTS,), generator=draw).tolist()
    return [torch.randint(0, 1792, (length,), generator=draw).tolist() for length in lengths]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    reference = Reference.load(tiny_checkpoint)
    return [reference.greedy(prompt, MAX_TOKENS) for prompt in prompts]


def crowd(client: Client, prompts: list[list[int]]) -> list[list[int]]:
    with ThreadPoolExecutor(CROWD) as pool:
        return list(pool.map(lambda prompt: greedy(client, prompt, MAX_TOKENS), prompts))


def test_the_reference_gives_different_texts(expected: list[list[int]]) -> None:
    """Else the comparison below would compare little: a model that repeats one token agrees with anything."""
    assert len({tuple(tokens) for tokens in expected}) == NUM_PROMPTS
    assert min(len(set(tokens)) for tokens in expected) > 8


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("transport", "num_attention"),
    [("links", 1), ("links", 2), pytest.param("all_to_all", 2, marks=pytest.mark.slow)],
)
def test_twenty_prompts_greedy(
    transport: str,
    num_attention: int,
    tiny_checkpoint: Path,
    tmp_path: Path,
    prompts: list[list[int]],
    expected: list[list[int]],
) -> None:
    shape = {"transport": transport, "num_attention": num_attention}
    with running_cell(tiny_checkpoint, tmp_path, **shape) as (_, client):
        assert crowd(client, prompts) == expected
        assert [greedy(client, prompt, MAX_TOKENS) for prompt in prompts] == expected


def test_links_over_tcp(
    tiny_checkpoint: Path, tmp_path: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with running_cell(tiny_checkpoint, tmp_path, links="tcp") as (_, client):
        assert crowd(client, prompts) == expected


def test_two_attention_workers_both_work(tiny_checkpoint: Path, tmp_path: Path, prompts: list[list[int]]) -> None:
    with running_cell(tiny_checkpoint, tmp_path, num_attention=2) as (cluster, client):
        crowd(client, prompts)
        logs = [(cluster.log_dir / f"attention-{rank}.log").read_text() for rank in range(2)]
        steps = {w.rank: w.tokens_per_second for w in client.status().workers if w.role == 2}
    assert all("loaded attention" in log for log in logs)
    assert len(steps) == 2


@pytest.mark.parametrize("chunk", [1, 16])
def test_any_prefill_chunk(
    chunk: int, tiny_checkpoint: Path, tmp_path: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with running_cell(tiny_checkpoint, tmp_path, attention={"prefill_chunk": chunk}) as (_, client):
        assert crowd(client, prompts[:8]) == expected[:8]
