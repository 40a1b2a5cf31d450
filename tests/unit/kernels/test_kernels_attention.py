"""Paged attention against float64, and the promise that a row's bits depend on its sequence alone."""

import pytest
import torch

from moonshard.kernels import Pool
from moonshard.kernels.attention import PagedStep, attend
from tests.unit.kernels.attention_samples import expected_attention, make_step, one_row
from tests.unit.kernels.kernel_samples import ISAS, pool_or_skip

# heads, latent, rope
SHAPES = [(1, 1, 0), (1, 2, 2), (3, 10, 6), (4, 16, 8), (5, 70, 10), (9, 100, 28), (6, 128, 64)]
# (start, length) of each sequence: one key, around blocks of 64, decodes and prompts
CHUNKS = [(0, 1), (0, 5), (63, 1), (64, 1), (60, 9), (127, 3), (150, 21)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_float64(isa: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    heads, latent, rope = shape
    torch.manual_seed(heads)
    step = make_step(CHUNKS, latent + rope, dtype=dtype)
    q_THC = torch.randn(step.num_rows, heads, latent + rope)
    with pool_or_skip(1, isa) as pool:
        found = attend(pool, 0, q_THC, step, latent, 0.3)
    expected = expected_attention(q_THC, step, latent, 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)


def test_k25s_widths_and_large_scores(pool: Pool) -> None:
    torch.manual_seed(0)
    step = make_step([(200, 2), (0, 9)], 576, block_size=16)
    q_THC = torch.randn(step.num_rows, 64, 576) * 3
    found = attend(pool, 0, q_THC, step, 512, 0.145)
    torch.testing.assert_close(found.double(), expected_attention(q_THC, step, 512, 0.145), rtol=0, atol=2e-5)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_batch(num_threads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    step = make_step([(0, 70), *CHUNKS], 100, dtype=dtype)
    q_THC = torch.randn(step.num_rows, 7, 100)
    with pool_or_skip(1, "avx2") as single, Pool(num_threads) as many:
        together = attend(many, 0, q_THC, step, 90, 0.2)
        for row in range(step.num_rows):
            alone = attend(single, 0, q_THC[row : row + 1], one_row(step, row), 90, 0.2)
            assert torch.equal(alone[0], together[row]), row


def test_what_a_row_must_not_see_may_be_anything(pool: Pool) -> None:
    torch.manual_seed(2)
    step = make_step([(5, 6), (17, 3)], 20, block_size=32)
    q_THC = torch.randn(step.num_rows, 3, 20)
    expected = attend(pool, 0, q_THC, step, 16, 0.5).clone()
    seen = set()
    for row in range(step.num_rows):
        base = int(step.blocks_BM[int(step.sequence_T[row]), 0]) * 32
        seen |= set(range(base, base + int(step.visible_T[row])))
    hidden = [slot for slot in range(step.cache_LSC.shape[1]) if slot not in seen]
    step.cache_LSC[0, hidden] = float("nan")
    assert torch.equal(attend(pool, 0, q_THC, step, 16, 0.5), expected)
    step.cache_LSC[0, int(step.written_T[5])] = float("nan")  # the last token of the first sequence
    found = attend(pool, 0, q_THC, step, 16, 0.5)
    assert found[5].isnan().all()
    others = [row for row in range(step.num_rows) if row != 5]
    assert torch.equal(found[others], expected[others])


def test_no_rows(pool: Pool) -> None:
    assert attend(pool, 0, torch.empty(0, 3, 20), make_step([], 20), 16, 1.0).shape == (0, 3, 16)


def test_wrong_steps_are_refused(pool: Pool) -> None:
    step = make_step([(0, 2)], 20)
    with pytest.raises(ValueError, match="q: expected"):
        attend(pool, 0, torch.randn(3, 2, 20), step, 16, 1.0)
    parts = step.written_T, step.sequence_T, step.visible_T, step.blocks_BM
    with pytest.raises(ValueError, match="written_T: expected contiguous int32"):
        PagedStep(parts[0].long(), *parts[1:], 4, step.cache_LSC)
    with pytest.raises(ValueError, match="rows: expected equal lengths"):
        PagedStep(parts[0][:1], *parts[1:], 4, step.cache_LSC)
    with pytest.raises(ValueError, match="cache_LSC"):
        PagedStep(*parts, 4, step.cache_LSC[0])
