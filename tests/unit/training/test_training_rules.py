"""QK-Clip, the balancing rule and INT4 rounding, each for itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.errors import ConfigError
from moonshard.model.gate import Gate
from moonshard.model.int4 import dequantise, quantise
from moonshard.model.layers import Linear, RMSNorm
from moonshard.model.mla import MLA
from moonshard.model.rope import Rope
from moonshard.model.weights import LayerWeights
from moonshard.training.attention import PackedAttention
from moonshard.training.balance import balancedness, move_bias
from moonshard.training.parameters import Parameters
from moonshard.training.qk_clip import clip_heads
from moonshard.training.quantise import fake_quantise, rounded
from moonshard.training.recipe import Recipe


def largest_logits(recipe: Recipe, layer: LayerWeights) -> torch.Tensor:
    """Of each head over one document of fixed inputs."""
    config = recipe.spec.config
    norms = [RMSNorm(weight, 1e-5) for weight in (layer.q_a_norm, layer.kv_a_norm)]
    mla = MLA(config, Linear(layer.qkv_a), norms[0], Linear(layer.q_b), norms[1], Linear(layer.kv_b), Linear(layer.o))
    x_TD = torch.randn(40, config.hidden_size, generator=torch.Generator().manual_seed(5)) * 3
    attention = PackedAttention.over(torch.ones(1, 40, dtype=torch.int64))
    with torch.no_grad():
        attention.attend(0, mla, *mla.project(x_TD, Rope(config).rotations(torch.arange(40))))
    return attention.max_logits[0]


def test_clipping_brings_the_largest_logit_to_the_threshold_and_leaves_other_heads(recipe: Recipe) -> None:
    layer = Parameters.initialise(recipe.spec.config, seed=1).decoder.layers[0]
    before = largest_logits(recipe, layer)
    threshold = float(before.mean())
    assert clip_heads(recipe.spec.config, layer, before, threshold) == int((before > threshold).sum()) == 1
    torch.testing.assert_close(largest_logits(recipe, layer), before.clamp(max=threshold), rtol=1e-5, atol=1e-5)


def test_clipping_below_the_threshold_changes_nothing(recipe: Recipe) -> None:
    layer = Parameters.initialise(recipe.spec.config, seed=1).decoder.layers[0]
    q_b, kv_b = layer.q_b.clone(), layer.kv_b.clone()
    assert clip_heads(recipe.spec.config, layer, torch.tensor([3.0, -2.0]), 3.0) == 0
    assert torch.equal(layer.q_b, q_b)
    assert torch.equal(layer.kv_b, kv_b)


def test_the_bias_of_busy_experts_sinks_and_that_of_idle_ones_rises() -> None:
    bias = torch.zeros(4)
    move_bias(bias, torch.tensor([6, 2, 0, 0]), rate=0.1)
    torch.testing.assert_close(bias, torch.tensor([-0.2, 0.0, 0.1, 0.1]))


def test_an_expert_that_is_idle_in_most_steps_counts_by_its_mean() -> None:
    """Four times its share in one step of four: nothing to correct, though it is below the mean in three."""
    bias = torch.zeros(8)
    for busy in (0, 0, 0, 28):
        move_bias(bias, torch.tensor([busy, *[(56 - busy) // 7] * 7]), rate=0.1)
    torch.testing.assert_close(bias, torch.zeros(8))


def test_the_rule_balances_a_skewed_gate(recipe: Recipe) -> None:
    config = recipe.spec.config
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(config.n_routed_experts, config.hidden_size, generator=generator) * 0.1
    x_TD = torch.randn(600, config.hidden_size, generator=generator) + weight[0] * 20
    gate = Gate(config, weight, torch.zeros(config.n_routed_experts))

    def counts() -> torch.Tensor:
        return torch.bincount(gate(x_TD)[0].flatten(), minlength=config.n_routed_experts)

    skewed = balancedness(counts())
    for step in range(200):
        move_bias(gate.bias_E, counts(), rate=0.02 * (1 - step / 200))
    assert skewed < 0.5
    assert balancedness(counts()) > 0.9


def test_balancedness_of_nothing_is_one() -> None:
    assert balancedness(torch.zeros(3, dtype=torch.int64)) == 1.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-12, 6), zeros=st.booleans())
def test_rounding_is_what_the_checkpoint_will_hold(seed: int, exponent: int, zeros: bool) -> None:
    weights = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    if zeros:
        weights[1, :, :32] = 0
    assert torch.equal(rounded(weights), dequantise(*quantise(weights)))


def test_gradients_pass_straight_through_rounding() -> None:
    weights = torch.randn(4, 32, generator=torch.Generator().manual_seed(7), requires_grad=True)
    slope = torch.randn(4, 32, generator=torch.Generator().manual_seed(8))
    (fake_quantise(weights) * slope).sum().backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None
    assert torch.equal(weights.grad, slope)


@pytest.mark.parametrize(("field", "value"), [("num_steps", 0), ("quantised_fraction", 1.5), ("qk_threshold", -1.0)])
def test_a_recipe_refuses_by_field_and_value(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field}.*{value}"):
        Recipe(**{field: value})
