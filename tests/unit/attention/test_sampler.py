"""Tokens from logits: greedy, temperature, top-k, top-p, seeds."""

import math
from collections import Counter

import pytest
import torch

from moonshard.attention.sampler import sample, uniform
from moonshard.sampling import SamplingParams

PROBABILITIES = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])
LOGITS = PROBABILITIES.log()


def draw(params: SamplingParams, count: int) -> Counter[int]:
    """`count` draws at different positions of one sequence."""
    return Counter(sample(LOGITS.expand(count, -1), [params] * count, list(range(count))))


def test_temperature_zero_takes_the_largest_and_the_first_of_equals() -> None:
    greedy = SamplingParams(temperature=0)
    assert sample(LOGITS[None], [greedy], [0]) == [1]
    assert sample(torch.tensor([[1.0, 3.0, 3.0]]), [greedy], [0]) == [1]


def test_draws_follow_the_distribution() -> None:
    count = 4000
    seen = draw(SamplingParams(temperature=1.0, top_p=1.0, seed=3), count)
    for token, probability in enumerate(PROBABILITIES.tolist()):
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(seen[token] - count * probability) < 5 * deviation


def test_temperature_flattens_and_sharpens() -> None:
    cold = draw(SamplingParams(temperature=0.2, top_p=1.0, seed=1), 1000)
    hot = draw(SamplingParams(temperature=2.0, top_p=1.0, seed=1), 1000)
    expected = PROBABILITIES.pow(1 / 0.2) / PROBABILITIES.pow(1 / 0.2).sum()
    assert abs(cold[1] / 1000 - expected[1]) < 0.06
    assert cold[1] > 850 > 450 > hot[1]


def test_top_k_keeps_the_k_largest() -> None:
    assert set(draw(SamplingParams(temperature=1.5, top_p=1.0, top_k=2, seed=5), 500)) == {1, 2}
    assert set(draw(SamplingParams(temperature=1.5, top_p=1.0, top_k=1, seed=5), 50)) == {1}
    assert len(draw(SamplingParams(temperature=1.5, top_p=1.0, top_k=100, seed=5), 500)) == 5


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, {1}), (0.41, {1, 2}), (0.66, {1, 2, 3}), (0.9, {1, 2, 3, 4})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    assert set(draw(SamplingParams(temperature=1.0, top_p=top_p, seed=9), 800)) == kept


def test_a_draw_depends_on_seed_and_position_only() -> None:
    params = SamplingParams(temperature=1.0, top_p=1.0, seed=42)
    other = SamplingParams(temperature=1.0, top_p=1.0, seed=43)
    alone = [sample(LOGITS[None], [params], [position])[0] for position in range(40)]
    crowd = sample(LOGITS.expand(80, -1), [params, other] * 40, [p for p in range(40) for _ in range(2)])
    assert crowd[::2] == alone
    assert crowd[1::2] != alone


def test_uniform_covers_the_unit_interval_evenly() -> None:
    values = [uniform(seed, position) for seed in range(20) for position in range(200)]
    assert all(0 <= v < 1 for v in values)
    tenths = Counter(int(v * 10) for v in values)
    assert all(330 < tenths[t] < 470 for t in range(10))
    assert len(set(values)) == len(values)
