"""BF16 linear layers against float64, and the promise that a row's bits depend on the row alone."""

import pytest
import torch

from moonshard.kernels import Bf16Linear, Pool
from tests.unit.kernels.kernel_samples import ISAS, pool_or_skip

SHAPES = [(1, 1, 1), (3, 5, 31), (7, 33, 32), (8, 64, 100), (9, 70, 1025), (50, 39, 2100), (97, 3, 64)]
FLOATS = [torch.float32, torch.bfloat16]


def linear(
    pool: Pool, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return Bf16Linear.pack(pool, w).forward(pool, x, out, dtype)


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
    with Pool(1) as one, Pool(num_threads) as pool:
        matrix = Bf16Linear.pack(one, w)
        alone = torch.cat([matrix.forward(one, row[None]) for row in x])
        for rows in range(71):
            assert torch.equal(matrix.forward(pool, x[:rows]), alone[:rows]), rows


def test_float32_rows_of_bf16_values_give_the_bits_of_bf16_rows(pool: Pool) -> None:
    x, w = sample(30, 70, 333, torch.bfloat16)
    assert torch.equal(linear(pool, x.float(), w), linear(pool, x, w))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 5, 27])
def test_heads_are_matrices_of_their_own(num_threads: int, rows: int) -> None:
    torch.manual_seed(rows)
    x, w = torch.randn(rows, 6, 128), torch.randn(6, 48, 128).bfloat16()
    with Pool(num_threads) as pool:
        heads = Bf16Linear(48, 128, num=6)
        for index, weight in enumerate(w):
            heads.load(pool, weight, index)
        found = heads.forward(pool, x)
        turned = torch.empty(6, rows, 48).transpose(0, 1)
        heads.forward(pool, x.transpose(0, 1).contiguous().transpose(0, 1), turned)
        for head in range(6):
            assert torch.equal(found[:, head], linear(pool, x[:, head], w[head]))
    assert torch.equal(turned, found)


def test_matrices_with_the_same_input_become_one(pool: Pool) -> None:
    x, w = sample(5, 96 + 40, 70, torch.bfloat16)
    joined = Bf16Linear(136, 70)
    joined.load(pool, w[:96])
    joined.load(pool, w[96:], first_output=96)
    assert torch.equal(joined.forward(pool, x), linear(pool, x, w))
    with pytest.raises(ValueError, match=r"outputs 16\.\.56 of 136 do not fall on multiples of 32"):
        joined.load(pool, w[96:], first_output=16)
    with pytest.raises(ValueError, match=r"index: expected 0..0, found 1"):
        joined.load(pool, w, index=1)


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
    ("x", "out", "message"),
    [
        (torch.zeros(2, 7), None, r"x: expected \[rows, 8\], found \[2, 7\]"),
        (torch.zeros(2, 8).double(), None, "x: expected torch.float32"),
        (torch.zeros(8, 2).T, None, "x: expected contiguous rows"),
        (torch.zeros(2, 3, 8), None, r"x: expected \[rows, 1, 8\], found \[2, 3, 8\]"),
        (torch.zeros(2, 8), torch.zeros(3, 4), r"out: expected \[2, 4\], found \[3, 4\]"),
    ],
)
def test_wrong_tensors_are_refused(pool: Pool, x: torch.Tensor, out: torch.Tensor | None, message: str) -> None:
    matrix = Bf16Linear.pack(pool, torch.zeros(4, 8).bfloat16())
    with pytest.raises(ValueError, match=message):
        matrix.forward(pool, x, out)
    with pytest.raises(ValueError, match=r"weight: expected torch.bfloat16"):
        matrix.load(pool, torch.zeros(4, 8))
