"""The two forms of attention against each other and against torch's own (specification 2.2, 2.3)."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moonshard.model.config import ModelConfig
from moonshard.model.layers import Linear, RMSNorm
from moonshard.model.mla import MLA, merge
from moonshard.model.rope import Rope
from tests.unit.model.tiny_checkpoint import deepseek_text, kimi_text


def make(text: dict[str, object], dtype: torch.dtype = torch.float32) -> MLA:
    torch.manual_seed(0)
    c = ModelConfig.from_json(text)
    heads = c.num_attention_heads

    def linear(rows: int, columns: int) -> Linear:
        return Linear((torch.randn(rows, columns) * columns**-0.5).to(dtype))

    return MLA(
        c,
        linear(c.q_lora_rank + c.latent_dim, c.hidden_size),
        RMSNorm(torch.ones(c.q_lora_rank, dtype=dtype), 1e-6),
        linear(heads * c.qk_head_dim, c.q_lora_rank),
        RMSNorm(torch.ones(c.kv_lora_rank, dtype=dtype), 1e-6),
        linear(heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
        linear(c.hidden_size, heads * c.v_head_dim),
    )


def project(mla: MLA, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(num_tokens, mla.config.hidden_size, dtype=mla.o.weight_OI.dtype)
    return mla.project(x, Rope(mla.config).rotations(torch.arange(num_tokens)))


@pytest.fixture(params=[kimi_text, deepseek_text], ids=["kimi", "deepseek"])
def mla(request: pytest.FixtureRequest) -> MLA:
    return make(request.param())


def test_plain_is_causal_attention(mla: MLA) -> None:
    c = mla.config
    q_nope, q_pe, latent = project(mla, 23)
    kv = mla.kv_b(latent[:, : c.kv_lora_rank]).view(23, c.num_attention_heads, -1).transpose(0, 1)
    k_pe = latent[:, c.kv_lora_rank :].expand(c.num_attention_heads, -1, -1)
    k = torch.cat((kv[..., : c.qk_nope_head_dim], k_pe), -1)
    q = torch.cat((q_nope, q_pe), -1).transpose(0, 1)
    v = kv[..., c.qk_nope_head_dim :]
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=c.softmax_scale)
    found, _ = mla.plain(q_nope, q_pe, latent, causal_offset=0)
    torch.testing.assert_close(found, expected.transpose(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 5, 8, 22, 23, 64])
def test_a_prompt_in_chunks_is_the_prompt(mla: MLA, chunk: int) -> None:
    q_nope, q_pe, latent = project(mla, 23)
    whole, _ = mla.plain(q_nope, q_pe, latent, causal_offset=0)
    for start in range(0, 23, chunk):
        rows = slice(start, start + chunk)
        own = mla.plain(q_nope[rows], q_pe[rows], latent[rows], causal_offset=0)
        cached = latent[:start].tensor_split(tuple(range(7, start, 7))) if start else ()
        context = [mla.plain(q_nope[rows], q_pe[rows], part) for part in cached]
        torch.testing.assert_close(merge([own, *context]), whole[rows], rtol=0, atol=1e-5)
        offset, _ = mla.plain(q_nope[rows], q_pe[rows], latent[: start + chunk], causal_offset=start)
        torch.testing.assert_close(offset, whole[rows], rtol=0, atol=1e-5)


def test_absorbed_is_plain(mla: MLA) -> None:
    q_nope, q_pe, latent = project(mla, 23)
    whole, _ = mla.plain(q_nope, q_pe, latent, causal_offset=0)
    lengths = torch.tensor([1, 9, 16, 23])
    padded = latent.expand(4, -1, -1).clone()
    for row, length in enumerate(lengths.tolist()):
        padded[row, length:] = 1e4  # what lies beyond a sequence must not matter
    last = lengths - 1
    found = mla.absorbed(q_nope[last], q_pe[last], padded, lengths)
    torch.testing.assert_close(found, whole[last], rtol=0, atol=1e-5)


def test_large_scores_stay_finite(mla: MLA) -> None:
    q_nope, q_pe, latent = project(mla, 9)
    parts = [mla.plain(q_nope * 1e4, q_pe * 1e4, part) for part in latent.chunk(3)]
    assert torch.isfinite(merge(parts)).all()


def test_bf16_forms_agree_to_its_precision() -> None:
    mla = make(kimi_text(), torch.bfloat16)
    q_nope, q_pe, latent = project(mla, 12)
    assert latent.dtype == q_pe.dtype == torch.bfloat16
    plain, _ = mla.plain(q_nope, q_pe, latent, causal_offset=0)
    absorbed = mla.absorbed(q_nope[-1:], q_pe[-1:], latent.unsqueeze(0), torch.tensor([12]))
    torch.testing.assert_close(absorbed.float(), plain[-1:].float(), rtol=0, atol=2e-2)


def test_no_tokens(mla: MLA) -> None:
    q_nope, q_pe, latent = project(mla, 0)
    assert len(q_nope) == len(q_pe) == len(latent) == 0
    assert mla.output(torch.empty(0, mla.config.num_attention_heads, mla.config.v_head_dim)).shape[0] == 0
