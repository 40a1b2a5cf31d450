"""The whole model against itself: chunked against whole, cached against uncached, batched against alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moonshard.model.mla import MLA
from moonshard.model.reference import ContiguousCache, Reference
from tests.unit.model.tiny_checkpoint import deepseek_text, kimi_text, plain, wrapped, write_checkpoint

PROMPT = torch.randint(0, 384, (29,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module", params=[wrapped(kimi_text()), plain(deepseek_text())], ids=["kimi", "deepseek"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference.load(write_checkpoint(tmp_path_factory.mktemp("reference"), request.param))


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 28, 29, 40])
def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(reference: Reference, chunk: int) -> None:
    cache, found = ContiguousCache(), []
    for start in range(0, len(PROMPT), chunk):
        tokens = torch.tensor(PROMPT[start : start + chunk])
        hidden = reference.decoder.forward(tokens, torch.arange(start, start + len(tokens)), cache.attend)
        found.append(reference.decoder.logits(hidden))
    torch.testing.assert_close(torch.cat(found), reference.logits(PROMPT), rtol=0, atol=2e-5)


def test_greedy_is_the_argmax_of_the_whole(reference: Reference) -> None:
    generated = reference.greedy(PROMPT, 12)
    logits = reference.logits(PROMPT + generated[:-1])
    assert generated == logits[len(PROMPT) - 1 :].argmax(-1).tolist()


def test_greedy_ends_with_the_end_token(reference: Reference) -> None:
    free = reference.greedy(PROMPT, 8)
    end = free[3]
    assert reference.greedy(PROMPT, 8, eos_token_ids={end}) == free[: free.index(end) + 1]


def test_two_sequences_in_one_batch_are_the_two_alone(reference: Reference) -> None:
    sequences = [PROMPT[:11], PROMPT[11:]]

    def attend(layer: int, mla: MLA, q_nope: Tensor, q_pe: Tensor, latent: Tensor) -> Tensor:
        parts = [slice(0, 11), slice(11, 29)]
        return torch.cat([mla.plain(q_nope[p], q_pe[p], latent[p], causal_offset=0)[0] for p in parts])

    positions = torch.cat([torch.arange(len(s)) for s in sequences])
    together = reference.decoder.logits(reference.decoder.forward(torch.tensor(PROMPT), positions, attend))
    alone = torch.cat([reference.logits(s) for s in sequences])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


def test_a_step_without_tokens(reference: Reference) -> None:
    def attend(layer: int, mla: MLA, q_nope: Tensor, q_pe: Tensor, latent: Tensor) -> Tensor:
        return q_nope.new_empty(0, mla.config.num_attention_heads, mla.config.v_head_dim)

    nothing = torch.empty(0, dtype=torch.int64)
    hidden = reference.decoder.forward(nothing, nothing, attend)
    assert reference.decoder.logits(hidden).shape == (0, 384)


def test_bf16_is_close_to_fp32(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, wrapped(kimi_text()))
    narrow, wide = (Reference.load(path, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert narrow.decoder.dtype == torch.bfloat16
    difference = (narrow.logits(PROMPT) - wide.logits(PROMPT)).abs()
    assert difference.median() < 0.02
    assert narrow.logits(PROMPT).dtype == torch.float32
