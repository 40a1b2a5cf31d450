"""The same prompts give the same tokens, bit for bit, however they are batched, cut, spread over workers and threads.

The checkpoint is chaotic: layers at full strength, so that a single differing bit turns into other tokens within a few
steps. Only the native kernels promise this.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from moonshard import kernels
from moonshard_cluster.client import Client
from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec
from tests.integration.cells import greedy, running_cell

NUM_PROMPTS, MAX_TOKENS = 20, 64

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")


@pytest.fixture(scope="module")
def chaotic_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "chaotic"
    write_demo(path, DemoSpec.tiny(hidden_size=128).chaotic())
    return path


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 120, (NUM_PROMPTS,), generator=draw).tolist()
    return [torch.randint(0, 1792, (length,), generator=draw).tolist() for length in lengths]


def answers(client: Client, prompts: list[list[int]], batch: int) -> list[list[int]]:
    with ThreadPoolExecutor(batch) as pool:
        return list(pool.map(lambda prompt: greedy(client, prompt, MAX_TOKENS), prompts))


def shape(chunk: int = 256, attention: int = 1, threads: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "num_attention": attention,
        "attention": {"prefill_chunk": chunk, "num_threads": threads},
        "experts": {"num_threads": threads},
        **more,
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_twenty_prompts_are_the_same_in_every_shape(
    dtype: str, chaotic_checkpoint: Path, tmp_path: Path, prompts: list[list[int]]
) -> None:
    shapes = [
        (shape(), (1, 7, 32)),
        (shape(chunk=16), (7,)),
        (shape(chunk=512), (7,)),
        (shape(attention=2), (7, 32)),
        (shape(threads=2), (1, 32)),
        (shape(transport="all_to_all", attention=2), (32,)),
    ]
    expected: list[list[int]] = []
    for number, (values, batches) in enumerate(shapes):
        with running_cell(chaotic_checkpoint, tmp_path / str(number), dtype=dtype, **values) as (_, client):
            for batch in batches:
                found = answers(client, prompts, batch)
                expected = expected or found
                assert found == expected, (values, batch)
    assert len({tuple(tokens) for tokens in expected}) == NUM_PROMPTS
