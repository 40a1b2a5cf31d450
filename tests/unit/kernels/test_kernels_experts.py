"""INT4 experts against float64, and the promise that a row's bits depend on the row alone."""

from collections.abc import Callable

import pytest
import torch

from moonshard.kernels import Pool, Precision, available
from tests.unit.kernels.kernel_samples import ISAS, Experts, make_experts, pool_or_skip

FIRST, COUNT, WIDTH, HIDDEN, SLOTS = 3, 5, 96, 160, 4
Rounding = Callable[[torch.Tensor], torch.Tensor]


def whole_steps(steps: int) -> Rounding:
    """What the whole-number paths make of activations, in float64: `steps` to the largest magnitude of each 32."""

    def rounding(x: torch.Tensor) -> torch.Tensor:
        groups = x.float().view(*x.shape[:-1], -1, 32)
        largest = groups.abs().amax(-1, keepdim=True)
        q = (groups * torch.where(largest > 0, steps / largest, 0)).round()
        return (q.double() * (largest / steps).double()).view(x.shape)

    return rounding


def q8_0(x: torch.Tensor) -> torch.Tensor:
    """llama.cpp's activations: the same, with the scale stored as FP16."""
    groups = x.float().view(*x.shape[:-1], -1, 32)
    step = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / step).round().double() * step.half().double()).view(x.shape)


def reference(
    experts: Experts, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, rounding: Rounding
) -> torch.Tensor:
    """Each row by itself, each expert by itself, in float64."""
    y = torch.zeros(x.shape[0], WIDTH, dtype=torch.float64)
    for row, slot in ((ids >= FIRST) & (ids < FIRST + COUNT)).nonzero().tolist():
        matrix = experts.matrices[int(ids[row, slot]) - FIRST]
        seen = rounding(x[row].double())
        hidden = torch.nn.functional.silu(matrix["gate"].exact @ seen) * (matrix["up"].exact @ seen)
        y[row] += weights[row, slot].double() * (matrix["down"].exact @ rounding(hidden))
    return y


def routing(rows: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, ids with -1, foreign ids and repeats, weights."""
    torch.manual_seed(seed)
    return torch.randn(rows, WIDTH), torch.randint(-1, FIRST + COUNT + 2, (rows, SLOTS)), torch.rand(rows, SLOTS)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def experts() -> Experts:
    if not available():
        pytest.skip("native kernels are not built")
    return make_experts(FIRST, COUNT, WIDTH, HIDDEN)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("precision", "rounding", "limit"),
    [("int8", whole_steps(127), 3e-4), ("int16", whole_steps(32639), 1e-5), ("exact", lambda x: x, 1e-6)],
)
def test_matches_float64(experts: Experts, isa: str, precision: Precision, rounding: Rounding, limit: float) -> None:
    # The limits leave room for a hidden value that lies on the edge between two steps.
    x, ids, weights = routing(50)
    found = experts.stack.forward(pool_or_skip(2, isa), x, ids, weights, precision=precision)
    assert error(found, reference(experts, x, ids, weights, rounding)) < limit


@pytest.mark.parametrize("precision", ["int8", "int16", "exact"])
def test_outputs_apart_lie_anywhere_and_do_not_depend_on_their_neighbours(
    experts: Experts, pool: Pool, precision: Precision
) -> None:
    """Each is what the expert alone gives for the row alone; one that is not here is NaN."""
    x, ids, weights = routing(23)
    ids = ids.clamp(max=FIRST + COUNT)  # the last is absent, and so are those below FIRST
    slots = torch.full((FIRST + COUNT + 1,), -1, dtype=torch.int32)
    slots[FIRST : FIRST + COUNT] = torch.tensor([4, 2, 0, 3, 1])
    shuffled = make_experts(FIRST, COUNT, WIDTH, HIDDEN)
    panels = shuffled.stack._panels.view(COUNT, -1)
    panels[slots[FIRST : FIRST + COUNT].long()] = panels.clone()
    found = shuffled.stack.forward(pool, x, ids, weights, precision=precision, slots_E=slots)
    pairs = (ids >= 0).nonzero().tolist()
    assert found.shape == (len(pairs), WIDTH)
    for output, (row, slot) in zip(found, pairs, strict=True):
        expert = int(ids[row, slot])
        if not FIRST <= expert < FIRST + COUNT:
            assert output.isnan().all()
            continue
        one, weight = torch.tensor([[expert]]), weights[row, slot].reshape(1, 1)
        alone = experts.stack.forward(pool, x[row : row + 1], one, weight, precision=precision)
        assert torch.equal(output, alone[0])


@pytest.mark.parametrize("precision", ["int8", "int16", "exact"])
def test_all_instruction_sets_give_the_same_bits(experts: Experts, pool: Pool, precision: Precision) -> None:
    x, ids, weights = routing(41)
    expected = experts.stack.forward(pool, x, ids, weights, precision=precision)
    for isa in ISAS:
        try:
            other = Pool(2, isa)
        except ValueError:
            continue
        assert torch.equal(experts.stack.forward(other, x, ids, weights, precision=precision), expected), isa


def test_int8_is_no_worse_than_q8_0(experts: Experts, pool: Pool) -> None:
    x, ids, weights = routing(200)
    exact = reference(experts, x, ids, weights, lambda x: x)
    ours = error(experts.stack.forward(pool, x, ids, weights), exact)
    assert ours < 0.02
    assert ours <= 1.02 * error(reference(experts, x, ids, weights, q8_0), exact)


def test_int16_is_better_than_bf16_activations(experts: Experts, pool: Pool) -> None:
    x, ids, weights = routing(200)
    exact = reference(experts, x, ids, weights, lambda x: x)
    ours = error(experts.stack.forward(pool, x, ids, weights, precision="int16"), exact)
    assert 20 * ours < error(reference(experts, x, ids, weights, lambda x: x.bfloat16().double()), exact)


def test_int16_at_its_largest_is_still_exact(pool: Pool) -> None:
    experts = make_experts(FIRST, 1, WIDTH, HIDDEN)
    for matrix in experts.matrices[0].values():
        matrix.packed.zero_()  # every weight -8
        matrix.scale.fill_(1)
        matrix.exact.fill_(-8)
    for name, matrix in experts.matrices[0].items():
        experts.stack.load(pool, FIRST, name, matrix.packed, matrix.scale)
    x = torch.full((6, WIDTH), -1.0)
    found = experts.stack.forward(pool, x, torch.full((6, 1), FIRST), torch.ones(6, 1), precision="int16")
    hidden = (8.0 * WIDTH) ** 2
    torch.testing.assert_close(found, torch.full((6, WIDTH), -8.0 * HIDDEN * hidden), rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["int8", "int16", "exact"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_bits_do_not_depend_on_the_batch(experts: Experts, precision: Precision, num_threads: int) -> None:
    x, ids, weights = routing(70)
    with Pool(1) as one, Pool(num_threads) as pool:
        alone = torch.cat(
            [
                experts.stack.forward(one, x[i : i + 1], ids[i : i + 1], weights[i : i + 1], precision=precision)
                for i in range(70)
            ]
        )
        for rows in range(71):
            found = experts.stack.forward(pool, x[:rows], ids[:rows], weights[:rows], precision=precision)
            assert torch.equal(found, alone[:rows]), rows


@pytest.mark.parametrize("rows", [600, 1300])
def test_many_rows_for_one_expert_span_waves(experts: Experts, pool: Pool, rows: int) -> None:
    x, _, weights = routing(rows)
    ids = torch.full((rows, 1), FIRST + 2)
    found = experts.stack.forward(pool, x, ids, weights[:, :1].contiguous())
    picked = torch.arange(0, rows, 97)
    alone = experts.stack.forward(pool, x[picked], ids[picked], weights[picked, :1].contiguous())
    assert torch.equal(found[picked], alone)


def test_a_repeated_expert_counts_twice(experts: Experts, pool: Pool) -> None:
    x, _, _ = routing(1)
    twice = experts.stack.forward(pool, x, torch.tensor([[4, 4]]), torch.tensor([[0.25, 0.5]]))
    once = experts.stack.forward(pool, x, torch.tensor([[4]]), torch.tensor([[0.75]]))
    torch.testing.assert_close(twice, once)


def test_slot_order_does_not_matter(experts: Experts, pool: Pool) -> None:
    x, _, _ = routing(1)
    ids, weights = torch.tensor([[7, 3, 5]]), torch.tensor([[0.2, 0.3, 0.5]])
    turned = experts.stack.forward(pool, x, ids.flip(1), weights.flip(1))
    assert torch.equal(experts.stack.forward(pool, x, ids, weights), turned)


def test_rows_without_experts_are_zero(experts: Experts, pool: Pool) -> None:
    x, _, weights = routing(3)
    out = torch.full((3, WIDTH), 7.0)
    experts.stack.forward(pool, x, torch.full((3, SLOTS), -1), weights, out)
    assert not out.any()


def test_strides_types_and_memory_around(experts: Experts, pool: Pool) -> None:
    x, ids, weights = routing(9)
    expected = experts.stack.forward(pool, x.bfloat16().float(), ids, weights)
    wide_x = torch.randn(9, WIDTH + 13).bfloat16()
    wide_x[:, 5 : 5 + WIDTH] = x
    wide_y = torch.full((9, WIDTH + 7), 7.0)
    experts.stack.forward(pool, wide_x[:, 5 : 5 + WIDTH], ids.int(), weights, wide_y[:, 3 : 3 + WIDTH])
    assert torch.equal(wide_y[:, 3 : 3 + WIDTH], expected)
    assert (wide_y[:, :3] == 7).all()
    assert (wide_y[:, 3 + WIDTH :] == 7).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("precision", ["int8", "int16", "exact"])
def test_nonfinite_stays_in_its_row_and_is_not_hidden(
    experts: Experts, pool: Pool, bad: float, precision: Precision
) -> None:
    x, _, weights = routing(6)
    ids = torch.full((6, SLOTS), FIRST)
    clean = experts.stack.forward(pool, x, ids, weights, precision=precision)
    x[2, 40] = bad
    found = experts.stack.forward(pool, x, ids, weights, precision=precision)
    assert not found[2].isfinite().any()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found[others], clean[others])


@pytest.mark.parametrize("magnitude", [0.0, 1e-42, 1e-37, 1e15])
def test_extreme_magnitudes_stay_finite(experts: Experts, pool: Pool, magnitude: float) -> None:
    x, ids, weights = routing(4)
    assert experts.stack.forward(pool, torch.full_like(x, magnitude), ids, weights).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 95)}, r"x: expected \[rows, 96\], found \[2, 95\]"),
        ({"x": torch.zeros(2, WIDTH, dtype=torch.float64)}, "x: expected torch.float32"),
        ({"x": torch.zeros(WIDTH, 2).T}, "contiguous rows"),
        ({"ids": torch.zeros(3, SLOTS, dtype=torch.int32)}, r"topk_weights: expected .*\[3, 4\], found .*\[2, 4\]"),
        ({"weights": torch.zeros(2, SLOTS).bfloat16()}, "topk_weights: expected torch.float32"),
        ({"x": torch.zeros(3, WIDTH)}, "rows: 2 in topk_ids, 3 in x"),
    ],
)
def test_wrong_tensors_are_refused(experts: Experts, pool: Pool, change: dict[str, torch.Tensor], message: str) -> None:
    x, ids, weights = routing(2)
    given = {"x": x, "ids": ids, "weights": weights} | change
    with pytest.raises(ValueError, match=message):
        experts.stack.forward(pool, given["x"], given["ids"], given["weights"])


def test_wrong_matrices_are_refused(experts: Experts, pool: Pool) -> None:
    matrix = experts.matrices[0]["gate"]
    with pytest.raises(ValueError, match=r"expert: expected 3..7, found 8"):
        experts.stack.load(pool, 8, "gate", matrix.packed, matrix.scale)
    with pytest.raises(
        ValueError, match=r"down packed: expected torch.int32 \[96, 20\], found torch.int32 \[160, 12\]"
    ):
        experts.stack.load(pool, 3, "down", matrix.packed, matrix.scale)
    with pytest.raises(ValueError, match="name: expected gate, up or down"):
        experts.stack.load(pool, 3, "side", matrix.packed, matrix.scale)


def test_size_equals_the_published_one(experts: Experts) -> None:
    published = sum(m.packed.nbytes + m.scale.nbytes for by_name in experts.matrices for m in by_name.values())
    assert experts.stack.resident_bytes == published
