"""The fused calls against float64 and torch: attention block, gate, SwiGLU, head; and their bits."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moonshard.kernels import Pool, structs
from moonshard.kernels.attention import Activations, AttentionBlock, AttentionWeights, Gate, Head, PagedStep, SwiGLU
from tests.unit.kernels.attention_samples import expected_attention, make_step, one_row
from tests.unit.kernels.kernel_samples import ISAS, pool_or_skip

EPS = 1e-5
CHUNKS = [(0, 1), (66, 1), (60, 9), (0, 21)]


@dataclass(frozen=True)
class Shape:
    hidden: int
    heads: int
    q_rank: int
    latent: int
    nope: int
    rope: int
    value: int
    experts: int = 24


SHAPES = [Shape(34, 1, 6, 10, 4, 2, 6), Shape(96, 3, 40, 32, 24, 8, 20), Shape(130, 5, 50, 70, 33, 6, 37)]
# Large enough to be shared among threads.
LARGE = Shape(512, 8, 256, 128, 64, 16, 64, 128)


def bf16(*shape: int) -> Tensor:
    return (torch.randn(*shape) * shape[-1] ** -0.5).bfloat16()


def norm(width: int) -> Tensor:
    return (1 + 0.1 * torch.randn(width)).bfloat16()


def make_weights(s: Shape) -> AttentionWeights:
    return AttentionWeights(
        input_norm=norm(s.hidden),
        q_a_norm=norm(s.q_rank),
        kv_a_norm=norm(s.latent),
        post_norm=norm(s.hidden),
        qkv_a=bf16(s.q_rank + s.latent + s.rope, s.hidden),
        q_b=bf16(s.heads * (s.nope + s.rope), s.q_rank),
        kv_b=bf16(s.heads * (s.nope + s.value), s.latent),
        o=bf16(s.hidden, s.heads * s.value),
    )


def make_gate(pool: Pool, s: Shape) -> tuple[Gate, Tensor, Tensor]:
    weight, bias = bf16(s.experts, s.hidden).float(), torch.randn(s.experts) * 0.05
    return Gate(pool, weight, bias, top_k=4, scale=2.5), weight, bias


def make_block(pool: Pool, s: Shape, weights: AttentionWeights, gate: Gate | None = None) -> AttentionBlock:
    return AttentionBlock(pool, weights, gate, heads=s.heads, nope=s.nope, eps=EPS, latent_eps=1e-6, scale=0.3)


def make_rotations(rows: int, rope: int) -> Tensor:
    angles = torch.rand(rows, rope // 2) * 6
    return torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).flatten(1)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def rotated(x: Tensor, rotations: Tensor) -> Tensor:
    pairs = torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.view_as_complex(rotations.double().unflatten(-1, (-1, 2)))).flatten(-2)


def expected_block(
    s: Shape, w: AttentionWeights, x_TD: Tensor, step: PagedStep, rotations: Tensor
) -> tuple[Tensor, Tensor]:
    """x and h in float64; writes the step's latents into its cache."""
    x = x_TD.double()
    a = rms(x, w.input_norm, EPS) @ w.qkv_a.double().T
    q_a, latent, k_pe = a.split((s.q_rank, s.latent, s.rope), -1)
    cached = torch.cat((rms(latent, w.kv_a_norm, 1e-6), rotated(k_pe, rotations)), -1)
    step.cache_LSC[0, step.written_T.long()] = cached.to(step.cache_LSC.dtype)
    q = (rms(q_a, w.q_a_norm, 1e-6) @ w.q_b.double().T).unflatten(-1, (s.heads, -1))
    kv_b = w.kv_b.double().unflatten(0, (s.heads, -1))
    q_latent = torch.einsum("thn,hnl->thl", q[..., : s.nope], kv_b[:, : s.nope])
    q_THC = torch.cat((q_latent, rotated(q[..., s.nope :], rotations.unsqueeze(1))), -1)
    o = torch.einsum("thl,hvl->thv", expected_attention(q_THC, step, s.latent, 0.3), kv_b[:, s.nope :])
    x = x + o.flatten(1) @ w.o.double().T
    return x, rms(x, w.post_norm, EPS)


def test_structs_are_those_of_the_headers(pool: Pool) -> None:
    structs.check_sizes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("s", SHAPES, ids=str)
@pytest.mark.parametrize(("activations", "tolerance"), [("float32", 1e-5), ("bfloat16", 6e-2)])
def test_the_block_matches_float64(isa: str, s: Shape, activations: Activations, tolerance: float) -> None:
    torch.manual_seed(s.hidden)
    with pool_or_skip(1, isa) as pool:
        weights, step = make_weights(s), make_step(CHUNKS, s.latent + s.rope)
        rotations, x = make_rotations(step.num_rows, s.rope), torch.randn(step.num_rows, s.hidden)
        expected_step = replace(step, cache_LSC=step.cache_LSC.clone())
        expected_x, expected_h = expected_block(s, weights, x, expected_step, rotations)
        h, ids, _ = make_block(pool, s, weights)(pool, 0, x, step, rotations, activations)
    assert ids.shape == (step.num_rows, 0)
    assert h.dtype == getattr(torch, activations)
    for found, expected in ((x, expected_x), (h, expected_h), (step.cache_LSC, expected_step.cache_LSC)):
        torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16])
def test_a_blocks_bits_do_not_depend_on_batch_threads_or_isa(
    pool: Pool, activations: Activations, cache_dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    s, weights = LARGE, make_weights(LARGE)
    step = make_step([*CHUNKS, (3, 150)], s.latent + s.rope, 16, cache_dtype)
    rotations, x = make_rotations(step.num_rows, s.rope), torch.randn(step.num_rows, s.hidden)
    block = make_block(pool, s, weights, make_gate(pool, s)[0])

    def run(other: Pool, rows: slice) -> list[Tensor]:
        part = x[rows].clone()
        chosen = one_row(step, rows.start) if rows.stop - rows.start == 1 else step
        return [part, *block(other, 0, part, chosen, rotations[rows].contiguous(), activations)]

    whole = run(pool, slice(0, step.num_rows))
    for row in range(step.num_rows):
        for found, expected in zip(run(pool, slice(row, row + 1)), whole, strict=True):
            assert torch.equal(found[0], expected[row]), row
    for isa in ISAS:
        try:
            other = Pool(3, isa)
        except ValueError:
            continue
        for found, expected in zip(run(other, slice(0, step.num_rows)), whole, strict=True):
            assert torch.equal(found, expected), isa


def test_a_blocks_gate_is_the_gate(pool: Pool) -> None:
    torch.manual_seed(4)
    s = SHAPES[1]
    gate, _, _ = make_gate(pool, s)
    step = make_step(CHUNKS, s.latent + s.rope)
    rotations, x = make_rotations(step.num_rows, s.rope), torch.randn(step.num_rows, s.hidden)
    h, ids, weights = make_block(pool, s, make_weights(s), gate)(pool, 0, x, step, rotations)
    expected_ids, expected_weights = gate(pool, h)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(weights, expected_weights)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exact", [True, False], ids=["bf16", "fp32"])
def test_the_gate_matches_float64(isa: str, exact: bool) -> None:
    torch.manual_seed(5)
    x, bias = torch.randn(37, 70), torch.randn(24) * 0.05
    weight = bf16(24, 70).float() if exact else torch.randn(24, 70) * 70**-0.5
    with pool_or_skip(1, isa) as pool:
        ids, weights = Gate(pool, weight, bias, top_k=5, scale=2.0)(pool, x)
    scores = (x.double() @ weight.double().T).sigmoid()
    chosen = scores.gather(1, ids.long())
    assert torch.equal(ids.long().sort(-1).values, (scores + bias).topk(5).indices.sort(-1).values)
    assert (((scores + bias).gather(1, ids.long())).diff() <= 1e-6).all()
    torch.testing.assert_close(weights.double(), chosen / chosen.sum(-1, keepdim=True) * 2, rtol=1e-6, atol=1e-6)


def test_equal_scores_go_to_the_lower_id(pool: Pool) -> None:
    weight = torch.zeros(12, 8)
    assert Gate(pool, weight, torch.zeros(12), top_k=4)(pool, torch.randn(2, 8))[0].tolist() == [[0, 1, 2, 3]] * 2
    bias = torch.tensor([0.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0])
    ids, weights = Gate(pool, weight, bias, top_k=5, normalise=False, scale=3.0)(pool, torch.randn(1, 8))
    assert ids.tolist() == [[4, 8, 1, 3, 0]]
    assert weights.tolist() == [[1.5] * 5]


def test_groups_that_score_low_are_out(pool: Pool) -> None:
    # Groups {0..3} {4..7} {8..11}: the best expert is 5, but its group's two best are worth less than the others'.
    bias = torch.tensor([2.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 2.0, 2.5, 1.0, 0.0])
    gate = Gate(pool, torch.zeros(12, 8), bias, top_k=3, num_groups=3, kept_groups=2)
    assert gate(pool, torch.randn(1, 8))[0].tolist() == [[9, 0, 1]]


def test_a_poisoned_row_leaves_the_gate_in_bounds(pool: Pool) -> None:
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    ids, weights = Gate(pool, torch.randn(12, 8), torch.zeros(12), top_k=4)(pool, x)
    assert ((ids >= 0) & (ids < 12)).all()
    assert weights[1].isnan().all()
    assert weights[[0, 2]].isfinite().all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("width", "hidden"), [(2, 2), (20, 34), (65, 31), (96, 160)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_adds_what_float64_adds(isa: str, width: int, hidden: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    gate_up, down = bf16(2 * width, hidden), bf16(hidden, width)
    x, h = torch.randn(19, hidden), torch.randn(19, hidden).to(dtype)
    gate, up = (h.double() @ gate_up.double().T).chunk(2, -1)
    expected = x.double() + (functional.silu(gate) * up) @ down.double().T
    with pool_or_skip(1, isa) as pool:
        SwiGLU(pool, gate_up, down).add_to(pool, x, h)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglus_bits_do_not_depend_on_the_batch(pool: Pool, dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    swiglu = SwiGLU(pool, bf16(2 * 160, 300), bf16(300, 160))
    x, h = torch.randn(600, 300), torch.randn(600, 300).to(dtype)
    alone = x.clone()
    for row in range(600):
        swiglu.add_to(pool, alone[row : row + 1], h[row : row + 1])
    for rows in (7, 70, 600):
        together = x[:rows].clone()
        with Pool(2) as two:
            swiglu.add_to(two, together, h[:rows])
        assert torch.equal(together, alone[:rows])


@pytest.mark.parametrize("isa", ISAS)
def test_the_head_matches_float64_at_any_stride(isa: str) -> None:
    torch.manual_seed(7)
    weight, scale = bf16(101, 66), norm(66)
    x = torch.randn(9, 80)[:, :66]
    with pool_or_skip(1, isa) as pool:
        found = Head(pool, scale, weight, EPS)(pool, x)
    torch.testing.assert_close(found.double(), rms(x.double(), scale, EPS) @ weight.double().T, rtol=0, atol=1e-5)


def test_wrong_shapes_are_refused(pool: Pool) -> None:
    s = SHAPES[0]
    block, step = make_block(pool, s, make_weights(s)), make_step([(0, 2)], s.latent + s.rope)
    with pytest.raises(ValueError, match="x, cache: expected 2 rows"):
        block(pool, 0, torch.randn(3, s.hidden), step, make_rotations(3, s.rope))
    with pytest.raises(ValueError, match=r"x: expected \[rows, 34\]"):
        block(pool, 0, torch.randn(2, 33), step, make_rotations(2, s.rope))
    with pytest.raises(ValueError, match="rotations_TR"):
        block(pool, 0, torch.randn(2, s.hidden), step, make_rotations(3, s.rope))
    with pytest.raises(ValueError, match="gate_up: expected"):
        SwiGLU(pool, bf16(6, 8), bf16(8, 4))
    with pytest.raises(ValueError, match="rows: 2 in x, 3 in h"):
        SwiGLU(pool, bf16(8, 8), bf16(8, 4)).add_to(pool, torch.randn(2, 8), torch.randn(3, 8))
