"""Tokens from logits: greedy, temperature, top-k, top-p, min-p, seeds, penalties, minimum length, log-probabilities."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.attention.draw import draw, uniform
from moonshard.attention.ranking import largest, ranked
from moonshard.attention.sampler import Choice, sample
from moonshard.attention.sequence import Sequence
from moonshard.sampling import SamplingParams

PROBABILITIES = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])
LOGITS = PROBABILITIES.log()


def sequence(num_tokens: int = 1, output: list[int] | None = None, **params: Any) -> Sequence:
    defaults = {"temperature": 0.0, "max_tokens": 100}
    return Sequence("a", [0] * num_tokens, SamplingParams(**{**defaults, **params}), output or [])


def one(logits_V: torch.Tensor, subject: Sequence) -> Choice:
    return sample(logits_V[None], [subject])[0]


def tokens(logits_NV: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    return [choice.token for choice in sample(logits_NV, sequences)]


def count_draws(params: dict[str, Any], count: int) -> Counter[int]:
    """`count` draws at different positions of one sequence."""
    return Counter(tokens(LOGITS.expand(count, -1), [sequence(place, **params) for place in range(count)]))


def test_temperature_zero_takes_the_largest_and_the_first_of_equals() -> None:
    assert one(LOGITS, sequence()).token == 1
    assert one(torch.tensor([1.0, 3.0, 3.0]), sequence()).token == 1


def test_draws_follow_the_distribution() -> None:
    count = 4000
    seen = count_draws({"temperature": 1.0, "top_p": 1.0, "seed": 3}, count)
    for token, probability in enumerate(PROBABILITIES.tolist()):
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(seen[token] - count * probability) < 5 * deviation


def test_temperature_flattens_and_sharpens() -> None:
    cold = count_draws({"temperature": 0.2, "top_p": 1.0, "seed": 1}, 1000)
    hot = count_draws({"temperature": 2.0, "top_p": 1.0, "seed": 1}, 1000)
    expected = PROBABILITIES.pow(1 / 0.2) / PROBABILITIES.pow(1 / 0.2).sum()
    assert abs(cold[1] / 1000 - expected[1]) < 0.06
    assert cold[1] > 850 > 450 > hot[1]


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    assert set(count_draws({"temperature": 1e-300, "top_p": 1.0, "seed": 1}, 50)) == {1}


def test_top_k_keeps_the_k_largest() -> None:
    warm = {"temperature": 1.5, "top_p": 1.0, "seed": 5}
    assert set(count_draws({**warm, "top_k": 2}, 500)) == {1, 2}
    assert set(count_draws({**warm, "top_k": 1}, 50)) == {1}
    assert len(count_draws({**warm, "top_k": 100}, 500)) == 5


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, {1}), (0.41, {1, 2}), (0.66, {1, 2, 3}), (0.9, {1, 2, 3, 4})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    assert set(count_draws({"temperature": 1.0, "top_p": top_p, "seed": 9}, 800)) == kept


@pytest.mark.parametrize(("min_p", "kept"), [(0.2, {1, 2, 3, 4}), (0.3, {1, 2, 3}), (0.6, {1, 2}), (1.0, {1})])
def test_min_p_keeps_what_has_that_share_of_the_likeliest(min_p: float, kept: set[int]) -> None:
    assert set(count_draws({"temperature": 1.0, "top_p": 1.0, "min_p": min_p, "seed": 9}, 800)) == kept


def test_a_draw_depends_on_seed_and_position_only() -> None:
    params = {"temperature": 1.0, "top_p": 1.0}
    alone = [one(LOGITS, sequence(place, **params, seed=42)).token for place in range(40)]
    mixed = [sequence(place, **params, seed=seed) for place in range(40) for seed in (42, 43)]
    crowd = tokens(LOGITS.expand(80, -1), mixed)
    assert crowd[::2] == alone
    assert crowd[1::2] != alone


def test_uniform_covers_the_unit_interval_evenly() -> None:
    values = [uniform(seed, position) for seed in range(20) for position in range(200)]
    assert all(0 <= v < 1 for v in values)
    tenths = Counter(int(v * 10) for v in values)
    assert all(330 < tenths[t] < 470 for t in range(10))
    assert len(set(values)) == len(values)


def sorted_draw(logits_V: np.ndarray[Any, Any], params: SamplingParams, point: float) -> int:
    """The slow obvious twin: sorts the whole vocabulary."""
    order_V = np.argsort(-logits_V, kind="stable")
    weights_V = np.exp((logits_V[order_V].astype(np.float64) - logits_V.max()) / params.temperature)
    weights_V = weights_V[weights_V >= params.min_p][: params.top_k or None]
    cumulative_V = weights_V.cumsum() / weights_V.sum()
    kept = (
        int((cumulative_V - weights_V / weights_V.sum() < params.top_p).sum()) if params.top_p < 1 else len(weights_V)
    )
    place = int(np.searchsorted(cumulative_V[:kept], point * cumulative_V[kept - 1], side="right"))
    return int(order_V[min(place, kept - 1)])


@settings(deadline=None, max_examples=300)
@given(
    spread=st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]),
    seed=st.integers(0, 2**32),
    point=st.floats(0, 1, exclude_max=True),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.01, 0.5, 0.95, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 1000]),
    min_p=st.sampled_from([0.0, 1e-6, 0.05, 0.5, 1.0]),
    steps=st.sampled_from([0, 8]),
)
def test_a_draw_is_that_of_the_sorted_vocabulary(
    spread: float, seed: int, point: float, temperature: float, top_p: float, top_k: int, min_p: float, steps: int
) -> None:
    logits_V = (np.random.default_rng(seed).standard_normal(700) * spread).astype(np.float32)
    if steps:  # many ties
        logits_V = np.round(logits_V * steps) / np.float32(steps)
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    found, expected = draw(logits_V, params, point), sorted_draw(logits_V, params, point)
    if found != expected:  # sums in another order: the draw lies on a border
        nudged = {sorted_draw(logits_V, params, min(max(point + d, 0.0), 1 - 1e-16)) for d in (-1e-12, 1e-12)}
        assert found in nudged


def test_repetition_scales_what_was_seen_and_the_others_subtract_from_the_output() -> None:
    logits = torch.tensor([4.0, -2.0, 3.0, 2.9, 0.0])
    seen = Sequence("a", [0, 1], SamplingParams(temperature=0, max_tokens=9, repetition_penalty=2.0, logprobs=5), [2])
    top = dict(one(logits, seen).logprobs.top)  # type: ignore[union-attr]
    assert max(top, key=top.__getitem__) == 3
    for token, expected in {0: 2.0, 1: -4.0, 2: 1.5, 4: 0.0}.items():
        assert top[3] - top[token] == pytest.approx(2.9 - expected, abs=1e-6)
    twice = Sequence(
        "a", [3], SamplingParams(temperature=0, max_tokens=9, frequency_penalty=0.5, presence_penalty=0.25), [0, 0, 2]
    )
    choice = one(logits, twice)
    assert choice.token == 3  # 4 - 1.25, 3 - 0.75, and 2.9 untouched: the prompt does not count


def test_penalties_count_tokens_as_they_come() -> None:
    logits = torch.tensor([1.0, 0.9, 0.8])
    subject = sequence(frequency_penalty=0.3)
    drawn = []
    for _ in range(4):
        drawn.append(one(logits, subject).token)
        subject.append(drawn[-1])
    again = sequence(frequency_penalty=0.3, output=drawn[:2])
    assert drawn == [0, 1, 2, 0]
    assert one(logits, again).token == drawn[2]


def test_a_bias_is_added_and_the_logits_given_stay_as_they_are() -> None:
    logits = LOGITS.clone()
    assert one(logits, sequence(logit_bias=((1, -100.0), (4, 100.0)))).token == 4
    assert torch.equal(logits, LOGITS)


def test_before_min_tokens_nothing_ends_the_output() -> None:
    params: dict[str, Any] = {"stop_token_ids": (1, 2), "min_tokens": 2}
    assert one(LOGITS, sequence(**params)).token == 3
    assert one(LOGITS, sequence(**params, output=[0])).token == 3
    assert one(LOGITS, sequence(**params, output=[0, 0])).token == 1
    warm = [sequence(n, **params, output=[0], seed=5, top_p=1.0, **{"temperature": 2.0}) for n in range(200)]
    assert set(tokens(LOGITS.expand(200, -1), warm)) == {0, 3, 4}


def test_logprobs_are_the_models_after_bias_before_temperature() -> None:
    subject = sequence(temperature=1.7, top_p=0.1, seed=1, logprobs=3, logit_bias=((0, 1.0),))
    expected = (LOGITS + torch.tensor([1.0, 0, 0, 0, 0])).log_softmax(-1)
    found = one(LOGITS, subject).logprobs
    assert found is not None
    assert found.token_id == 1
    assert found.logprob == pytest.approx(float(expected[1]), abs=1e-6)
    assert [token for token, _ in found.top] == [1, 2, 3]
    assert [logprob for _, logprob in found.top] == pytest.approx(expected[[1, 2, 3]].tolist(), abs=1e-6)
    assert one(LOGITS, sequence(logprobs=0)).logprobs.top == ()  # type: ignore[union-attr]
    assert one(LOGITS, sequence()).logprobs is None


@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=60), count=st.integers(0, 70))
def test_the_largest_come_in_order_and_ties_by_id(values: list[int], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]
    assert largest(np.array(values, np.float32), count).tolist() == expected


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60))
def test_any_logits_are_ranked_ties_by_id(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    assert ranked(logits, np.arange(len(values))).tolist() == np.argsort(-logits, kind="stable").tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_are_an_error_of_their_row_only(bad: float) -> None:
    rows = LOGITS.repeat(2, 1)
    rows[0, 4] = bad
    found = sample(rows, [sequence(3), sequence()])
    assert [(c.token, c.error) for c in found] == [(-1, "non-finite logits at token 3"), (1, "")]
