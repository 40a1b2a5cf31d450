"""The same prompts give the same tokens from the reference and from every transport, alone and in company."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from moonshard.attention.engine import Engine
from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.runner import Runner
from moonshard.attention.scheduler import Scheduler
from moonshard.attention.sequence import Sequence
from moonshard.config import CellConfig
from moonshard.experts.shard import Shard
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.decoder import Decoder
from moonshard.model.experts import load_expert_stacks
from moonshard.model.reference import Reference
from moonshard.model.weights import load_weights
from moonshard.sampling import SamplingParams
from moonshard.transport.contract import ExpertBatch
from moonshard.transport.local import LocalDispatcher
from moonshard.worker import wire_spec
from moonshard_cluster.client import Client
from tests.integration.cells import EXACT, greedy, running_cell

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


def test_twenty_prompts_over_the_local_transport(
    tiny_checkpoint: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    engine = local_engine(tiny_checkpoint)
    alone = [run(engine, [prompt])[0] for prompt in prompts]
    crowded = [tokens for at in range(0, NUM_PROMPTS, CROWD) for tokens in run(engine, prompts[at : at + CROWD])]
    assert alone == expected
    assert crowded == expected


def local_engine(path: Path) -> Engine:
    """An attention worker and eight shards in this process, over function calls."""
    model = ModelConfig.from_dir(path)
    config = CellConfig(checkpoint=path)
    spec = wire_spec(config, model, torch.float32)
    with Checkpoint(path, model) as checkpoint:
        shards = [Shard(load_expert_stacks(checkpoint, spec.experts_of(s)), spec.experts_of(s)) for s in range(8)]
        weights = load_weights(checkpoint)

    def compute(shard: int, layer: int, *batch: torch.Tensor) -> torch.Tensor:
        return shards[shard].compute(ExpertBatch(layer, *batch, segments=()))

    device, limits = torch.device("cpu"), config.attention
    shape = model.num_hidden_layers, limits.num_blocks, limits.block_size, model.latent_dim
    decoder = Decoder(model, weights, LocalDispatcher(spec, compute))
    return Engine(Scheduler(limits), Runner(decoder, LatentCache(*shape, torch.float32, device), device))


def run(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations of all prompts at once."""
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    assert not engine.admit([Sequence(str(i), prompt, params) for i, prompt in enumerate(prompts)])
    found: list[list[int]] = [[] for _ in prompts]
    while (plan := engine.plan()).num_tokens:
        for output in engine.step(plan):
            assert output.token is not None, output.error
            found[int(output.request_id)].append(output.token)
    return found


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
    with running_cell(tiny_checkpoint, tmp_path, **EXACT, **shape) as (_, client):
        assert crowd(client, prompts) == expected
        assert [greedy(client, prompt, MAX_TOKENS) for prompt in prompts] == expected


def test_links_over_tcp(
    tiny_checkpoint: Path, tmp_path: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with running_cell(tiny_checkpoint, tmp_path, **EXACT, links="tcp") as (_, client):
        assert crowd(client, prompts) == expected


def test_two_attention_workers_both_work(tiny_checkpoint: Path, tmp_path: Path, prompts: list[list[int]]) -> None:
    with running_cell(tiny_checkpoint, tmp_path, **EXACT, num_attention=2) as (cluster, client):
        crowd(client, prompts)
        logs = [(cluster.log_dir / f"attention-{rank}.log").read_text() for rank in range(2)]
        steps = {w.rank: w.tokens_per_second for w in client.status().workers if w.role == 2}
    assert all("loaded attention" in log for log in logs)
    assert len(steps) == 2


def test_without_native_kernels(
    tiny_checkpoint: Path, tmp_path: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with running_cell(tiny_checkpoint, tmp_path, **EXACT, kernels="torch") as (_, client):
        assert crowd(client, prompts) == expected


@pytest.mark.parametrize("chunk", [1, 16])
def test_any_prefill_chunk(
    chunk: int, tiny_checkpoint: Path, tmp_path: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with running_cell(tiny_checkpoint, tmp_path, **EXACT, attention={"prefill_chunk": chunk}) as (_, client):
        assert crowd(client, prompts[:8]) == expected[:8]
