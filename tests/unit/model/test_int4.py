"""The packed layout, bit by bit (specification 4.2)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moonshard.model import int4


def test_nibbles_lie_as_published() -> None:
    packed = int4.pack(torch.tensor([[-8, -7, -6, -5, -4, -3, -2, 7]]))
    assert packed.dtype == torch.int32
    # Input 0 in the lowest nibble, stored as q + 8.
    assert int(packed) & 0xFFFFFFFF == 0xF6543210


def test_byte_k_holds_inputs_2k_and_2k_plus_1() -> None:
    packed = int4.pack(torch.arange(-8, 8).unsqueeze(0))
    assert packed.view(torch.uint8).tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]


@given(st.lists(st.integers(-8, 7), min_size=64, max_size=64))
def test_unpack_undoes_pack(values: list[int]) -> None:
    q = torch.tensor(values).view(2, 32)
    assert torch.equal(int4.unpack(int4.pack(q)), q.to(torch.int8))


def test_a_slice_of_a_stack_unpacks() -> None:
    q = torch.randint(-8, 8, (3, 8, 64))
    assert torch.equal(int4.unpack(int4.pack(q)[1, 2:5]), q[1, 2:5].to(torch.int8))


def test_dequantise_is_the_published_formula() -> None:
    q, scale = torch.randint(-8, 8, (5, 96)), torch.rand(5, 3).to(torch.bfloat16)
    weights = int4.dequantise(int4.pack(q), scale)
    expected = [[int(q[o, i]) * float(scale[o, i // 32]) for i in range(96)] for o in range(5)]
    assert torch.equal(weights, torch.tensor(expected, dtype=torch.float32))
    assert torch.equal(int4.dequantise(int4.pack(q), scale, torch.bfloat16), weights.to(torch.bfloat16))


@pytest.mark.parametrize("size", [1.0, 0.0, 1e-4])
def test_quantise_is_within_half_a_step(size: float) -> None:
    w = torch.randn(16, 128) * size
    packed, scale = int4.quantise(w)
    error = (int4.dequantise(packed, scale) - w).abs().view(16, 4, 32)
    # Half a step, and a little for the scale's own BF16 rounding at the ends of the range.
    assert (error <= scale.float().unsqueeze(-1) * 0.55).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_in_blocks_is_linear(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, scale = int4.quantise(torch.randn(50, 64))
    x = torch.randn(3, 64).to(dtype)
    expected = x.float() @ int4.dequantise(packed, scale, dtype).float().T
    for block in (1, 64 * 7, 64 * 50):
        monkeypatch.setattr(int4, "_BLOCK_WEIGHTS", block)
        found = int4.linear(x, packed, scale)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)
