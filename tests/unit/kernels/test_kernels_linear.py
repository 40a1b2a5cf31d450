"""BF16 linear layers against float64, and the promise that a row's bits depend on the row alone."""

import pytest
import torch

from moonshard.kernels import Pool, linear
from tests.unit.kernels.kernel_samples import ISAS, pool_or_skip

SHAPES = [(1, 1, 1), (3, 5, 31), (7, 33, 32), (8, 64, 100), (9, 70, 1025), (50, 39, 2100), (97, 3, 64)]
FLOATS = [torch.float32, torch.bfloat16]


def sample(rows: int, columns: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(rows * 1009 + columns)
    return torch.randn(rows, inputs).to(dtype), torch.randn(columns, inputs).bfloat16()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(isa: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    x, w = sample(*shape, dtype)
    found = linear(pool_or_skip(2, isa), x, w).double()
    scale = x.double().abs() @ w.double().abs().T  # what rounding errors are relative to
    assert ((found - x.double() @ w.double().T).abs() <= 1e-6 * scale).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_all_instruction_sets_give_the_same_bits(pool: Pool, dtype: torch.dtype) -> None:
    x, w = sample(53, 75, 1061, dtype)
    expected = linear(pool, x, w)
    for isa in ISAS:
        try:
            other = Pool(2, isa)
        except ValueError:
            continue
        assert torch.equal(linear(other, x, w), expected), isa


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("columns", "inputs"), [(67, 1500), (33, 4100), (1200, 160)])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_bits_do_not_depend_on_the_batch(dtype: torch.dtype, columns: int, inputs: int, num_threads: int) -> None:
    x, w = sample(70, columns, inputs, dtype)
    with Pool(num_threads) as pool:
        alone = torch.cat([linear(pool, row[None], w) for row in x])
        for rows in range(71):
            assert torch.equal(linear(pool, x[:rows], w), alone[:rows]), rows


def test_bf16_output_rounds_to_nearest_even(pool: Pool) -> None:
    x, w = sample(9, 40, 300, torch.float32)
    full = linear(pool, x, w)
    assert torch.equal(linear(pool, x, w, dtype=torch.bfloat16), full.bfloat16())


@pytest.mark.parametrize("dtype", FLOATS)
def test_strides_and_memory_around(pool: Pool, dtype: torch.dtype) -> None:
    x, w = sample(6, 37, 77, dtype)
    wide_x, wide_w = torch.full((6, 90), 9.0, dtype=dtype), torch.full((37, 81), 9.0, dtype=torch.bfloat16)
    wide_x[:, 11:88], wide_w[:, 3:80] = x, w
    out = torch.full((6, 50), 7.0)
    linear(pool, wide_x[:, 11:88], wide_w[:, 3:80], out[:, 4:41])
    assert torch.equal(out[:, 4:41], linear(pool, x, w))
    assert (out[:, :4] == 7).all()
    assert (out[:, 41:] == 7).all()


def test_one_row_for_all(pool: Pool) -> None:
    x, w = sample(1, 20, 64, torch.float32)
    assert torch.equal(linear(pool, x.expand(5, 64), w), linear(pool, x, w).expand(5, 20))


def test_nothing_to_sum_is_zero(pool: Pool) -> None:
    assert torch.equal(linear(pool, torch.empty(3, 0), torch.empty(4, 0, dtype=torch.bfloat16)), torch.zeros(3, 4))
    assert linear(pool, torch.empty(0, 8), torch.zeros(4, 8, dtype=torch.bfloat16)).shape == (0, 4)
    assert linear(pool, torch.empty(3, 8), torch.zeros(0, 8, dtype=torch.bfloat16)).shape == (3, 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_stays_in_its_row_and_column(pool: Pool, dtype: torch.dtype, bad: float) -> None:
    x, w = sample(5, 9, 70, dtype)
    x[3, 69] = bad
    w[2, 1] = bad
    found = linear(pool, x, w).isfinite()
    expected = torch.ones(5, 9, dtype=torch.bool)
    expected[3], expected[:, 2] = False, False
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(2, 7), torch.zeros(3, 8).bfloat16(), r"weight: expected \[rows, 7\], found \[3, 8\]"),
        (torch.zeros(2, 8), torch.zeros(3, 8), "weight: expected torch.bfloat16"),
        (torch.zeros(8, 2).T, torch.zeros(3, 8).bfloat16(), "x: expected contiguous rows"),
    ],
)
def test_wrong_tensors_are_refused(pool: Pool, x: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(pool, x, weight)
