"""The router's choice, by hand and against a slow twin (specification 2.5)."""

import torch

from moonshard.model.config import ModelConfig
from moonshard.model.gate import Gate
from tests.unit.model.tiny_checkpoint import deepseek_text, kimi_text


def gate(logits_bias: list[float], **changes: object) -> Gate:
    """A gate whose logits are the input itself."""
    config = ModelConfig.from_json(kimi_text(hidden_size=4, n_routed_experts=4, num_experts_per_tok=2, **changes))
    return Gate(config, torch.eye(4), torch.tensor(logits_bias))


def test_the_bias_selects_but_does_not_weigh() -> None:
    x = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    ids, weights = gate([0.0, 0.0, 0.0, 0.9])(x)
    scores = x.sigmoid()[0]
    assert ids.tolist() == [[3, 0]]
    expected = scores[[3, 0]] / (scores[3] + scores[0]) * 2.827
    torch.testing.assert_close(weights[0], expected)
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)


def test_weights_stay_raw_without_renormalisation() -> None:
    x = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    _, weights = gate([0.0] * 4, norm_topk_prob=False)(x)
    torch.testing.assert_close(weights[0], x.sigmoid()[0, :2] * 2.827)


def test_of_equal_scores_the_lower_id_wins() -> None:
    ids, _ = gate([0.0] * 4)(torch.zeros(3, 4))
    assert ids.tolist() == [[0, 1]] * 3


def test_groups_keep_the_best_pairs() -> None:
    # Groups (0, 1) and (2, 3): the single best expert, 0, is in the group with the lesser pair.
    ids, _ = gate([0.0] * 4, n_group=2, topk_group=1)(torch.tensor([[3.0, -9.0, 1.0, 0.5]]))
    assert ids.tolist() == [[2, 3]]


def test_groups_against_a_slow_twin() -> None:
    torch.manual_seed(0)
    config = ModelConfig.from_json(deepseek_text())
    fast = Gate(config, torch.randn(24, 96) * 0.2, torch.randn(24) * 0.1)
    x = torch.randn(50, 96)
    ids, _ = fast(x)
    choice = (x @ fast.weight_ED.T).sigmoid() + fast.bias_E
    for row, found in zip(choice.tolist(), ids.tolist(), strict=True):
        groups = sorted(range(6), key=lambda g: -sum(sorted(row[4 * g : 4 * g + 4])[-2:]))[:3]
        allowed = sorted((e for e in range(24) if e // 4 in groups), key=lambda e: -row[e])
        assert found == allowed[:4]


def test_no_rows() -> None:
    ids, weights = gate([0.0] * 4)(torch.empty(0, 4))
    assert ids.shape == weights.shape == (0, 2)


def test_rows_in_bf16_are_scored_in_fp32() -> None:
    x = torch.randn(5, 4, dtype=torch.bfloat16)
    for found, expected in zip(gate([0.0] * 4)(x), gate([0.0] * 4)(x.float()), strict=True):
        assert torch.equal(found, expected)
