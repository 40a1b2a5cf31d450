"""What the shards count is what the reference model routes, expert by expert, however many attention workers send."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moonshard.model.gate import Gate
from moonshard.model.reference import Reference
from moonshard_cluster.client import Client
from moonshard_cluster.load.matrix import Counts, ExpertLoad, from_response
from tests.integration.cells import EXACT, OPEN, greedy, running_cell

NUM_REQUESTS, MAX_TOKENS, CROWD, TOP_K, NUM_LAYERS = 200, 3, 16, 8, 2
# A row whose eighth and ninth expert score this alike may be routed either way by other rounding.
MARGIN_MIN = 1e-5


@dataclass(frozen=True)
class Routed:
    """Prompts, their continuations, and how the reference routed all rows of them."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    rows_LE: Counts

    @property
    def num_rows(self) -> int:
        """The last token is never run."""
        return sum(map(len, self.prompts)) + NUM_REQUESTS * (MAX_TOKENS - 1)


@pytest.fixture(scope="module")
def routed(tiny_checkpoint: Path) -> Routed:
    reference, draw = Reference.load(tiny_checkpoint), torch.Generator().manual_seed(7)
    prompts, tokens, rows_LE = [], [], np.zeros((NUM_LAYERS, 384), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        log = log_gates(patch)
        while len(prompts) < NUM_REQUESTS:
            length = int(torch.randint(2, 24, (), generator=draw))
            prompt = torch.randint(0, 1700, (length,), generator=draw).tolist()
            log.clear()
            continuation = reference.greedy(prompt, MAX_TOKENS)
            if min(margin for _, margin in log) < MARGIN_MIN:
                continue
            prompts.append(prompt)
            tokens.append(continuation)
            for call, (ids, _) in enumerate(log):
                rows_LE[call % NUM_LAYERS] += np.bincount(ids, minlength=384)
    return Routed(prompts, tokens, rows_LE)


def log_gates(patch: pytest.MonkeyPatch) -> list[tuple[Any, float]]:
    """(ids of a call, how far the last chosen expert was ahead of the first not chosen) for every call of a gate."""
    log: list[tuple[Any, float]] = []
    route = Gate.__call__

    def logged(gate: Gate, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        ids_TK, weights_TK = route(gate, x_TD)
        choice_TE = torch.nn.functional.linear(x_TD.float(), gate.weight_ED).sigmoid() + gate.bias_E
        best_TK = choice_TE.topk(TOP_K + 1).values
        log.append((ids_TK.flatten().numpy(), float((best_TK[:, -2] - best_TK[:, -1]).min())))
        return ids_TK, weights_TK

    patch.setattr(Gate, "__call__", logged)
    return log


@pytest.mark.parametrize("num_attention", [1, 2])
def test_counts_are_the_references_routing(
    num_attention: int, routed: Routed, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with running_cell(tiny_checkpoint, tmp_path, **EXACT, num_attention=num_attention, metrics=OPEN) as (_, client):
        with ThreadPoolExecutor(CROWD) as pool:
            answers = list(pool.map(lambda prompt: greedy(client, prompt, MAX_TOKENS), routed.prompts))
        load = told(client, routed.num_rows * TOP_K * NUM_LAYERS)
    assert answers == routed.tokens
    assert load.layers == (1, 2)
    assert np.array_equal(load.rows_LE, routed.rows_LE), np.argwhere(load.rows_LE != routed.rows_LE)


def told(client: Client, total: int, limit_s: float = 10.0) -> ExpertLoad:
    """The load since the start, once all of it has been told."""
    deadline = time.monotonic() + limit_s
    while (load := from_response(client.load(0.0))).total < total and time.monotonic() < deadline:
        time.sleep(0.1)
    assert load.total == total
    return load
