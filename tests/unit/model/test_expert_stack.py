"""One layer's experts against a slow twin, with unbalanced and with empty routing."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moonshard.model import int4
from moonshard.model.experts import ExpertStack, Int4Projection, PlainProjection, Projection

NUM, HIDDEN, WIDTH = 6, 64, 32


def stack(first: int = 0) -> ExpertStack:
    torch.manual_seed(0)
    gate_up = Int4Projection(*int4.quantise(torch.randn(NUM, 2 * WIDTH, HIDDEN) * 0.1))
    down = Int4Projection(*int4.quantise(torch.randn(NUM, HIDDEN, WIDTH) * 0.1))
    return ExpertStack(range(first, first + NUM), gate_up, down)


def weights_of(projection: Projection, expert: int) -> Tensor:
    packed, scale = projection.tensors
    return int4.dequantise(packed[expert], scale[expert])


def twin(experts: ExpertStack, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Row by row, expert by expert, in ascending expert order."""
    y = torch.zeros(len(x), HIDDEN)
    for row in range(len(x)):
        for expert, weight in sorted(zip(ids[row].tolist(), weights[row].tolist(), strict=True)):
            if expert in experts.experts:
                local = expert - experts.experts.start
                gate, up = (weights_of(experts.gate_up, local) @ x[row]).chunk(2)
                y[row] += weight * (weights_of(experts.down, local) @ (functional.silu(gate) * up))
    return y


@pytest.mark.parametrize(
    "ids",
    [
        [[10, 12], [15, 11], [13, 14]],
        [[12, -1], [-1, -1], [-1, 12]],
        [[9, 16], [0, 383], [-1, -1]],
        [[11, 10]] * 7,
        [[15, 10]],
    ],
    ids=["balanced", "some elsewhere", "all elsewhere", "crowded", "one row"],
)
def test_weighted_sums(ids: list[list[int]]) -> None:
    experts = stack(first=10)
    x, weights = torch.randn(len(ids), HIDDEN), torch.rand(len(ids), 2)
    y = experts.forward(x, torch.tensor(ids, dtype=torch.int32), weights)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, twin(experts, x, torch.tensor(ids), weights), rtol=0, atol=1e-5)


def test_outputs_apart() -> None:
    """Expert 11 lies last, 12 is not here."""
    experts, slots = stack(first=10), torch.full((16,), -1, dtype=torch.int32)
    slots[torch.tensor([10, 11, 13])] = torch.tensor([0, 5, 3], dtype=torch.int32)
    x, weights, ids = torch.randn(3, HIDDEN), torch.rand(3, 2), torch.tensor([[11, -1], [10, 12], [13, 11]]).int()
    found = experts.forward_apart(x, ids, weights, slots)
    wanted = [(0, 0, 15), (1, 0, 10), (1, 1, None), (2, 0, 13), (2, 1, 15)]  # row, slot, whose weights lie there
    for output, (row, slot, there) in zip(found, wanted, strict=True):
        if there is None:
            assert output.isnan().all()
            continue
        one = torch.tensor([[there]])
        alone = experts.forward(x[row : row + 1], one, weights[row, slot].reshape(1, 1))
        torch.testing.assert_close(output, alone[0], rtol=0, atol=1e-6)


def test_no_rows() -> None:
    y = stack().forward(torch.empty(0, HIDDEN), torch.empty(0, 2, dtype=torch.int32), torch.empty(0, 2))
    assert y.shape == (0, HIDDEN)


def test_two_halves_add_up_to_the_whole() -> None:
    whole, ids = stack(), torch.tensor([[0, 5, 2], [4, 3, 1]], dtype=torch.int32)
    x, weights = torch.randn(2, HIDDEN), torch.rand(2, 3)

    def part(experts: range) -> ExpertStack:
        here = slice(experts.start, experts.stop)
        projections = (Int4Projection(p.tensors[0][here], p.tensors[1][here]) for p in (whole.gate_up, whole.down))
        return ExpertStack(experts, *projections)

    halves = part(range(3)).forward(x, ids, weights) + part(range(3, 6)).forward(x, ids, weights)
    torch.testing.assert_close(halves, whole.forward(x, ids, weights), rtol=0, atol=1e-6)


def test_bf16_rows_are_computed_in_bf16_and_summed_in_fp32() -> None:
    experts, ids = stack(), torch.tensor([[1, 3]], dtype=torch.int32)
    x, weights = torch.randn(1, HIDDEN).to(torch.bfloat16), torch.tensor([[0.5, 0.25]])
    singles = [experts.forward(x, ids[:, k : k + 1], weights[:, k : k + 1]) for k in (0, 1)]
    assert torch.equal(experts.forward(x, ids, weights), singles[0] + singles[1])
    unweighted = experts.forward(x, ids[:, :1], torch.ones(1, 1))
    assert torch.equal(unweighted, unweighted.to(torch.bfloat16).float())


def test_plain_experts_equal_packed_ones_on_the_same_values() -> None:
    packed, ids = stack(), torch.tensor([[0, 5], [2, 1]], dtype=torch.int32)
    values = [torch.stack([weights_of(p, e) for e in range(NUM)]) for p in (packed.gate_up, packed.down)]
    unpacked = ExpertStack(range(NUM), PlainProjection(values[0]), PlainProjection(values[1]))
    x, weights = torch.randn(2, HIDDEN), torch.rand(2, 2)
    assert torch.equal(unpacked.forward(x, ids, weights), packed.forward(x, ids, weights))


def test_resident_bytes() -> None:
    assert stack().resident_bytes == NUM * 3 * HIDDEN * WIDTH // 2 + NUM * 3 * HIDDEN * WIDTH // 32 * 2
