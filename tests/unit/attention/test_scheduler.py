"""The batch of the attention worker: who runs in a step, and whose blocks are whose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.attention.plan import StepPlan
from moonshard.attention.prefill import share_budget
from moonshard.attention.scheduler import Scheduler
from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.errors import RequestError
from moonshard.sampling import FinishReason, SamplingParams


def sequence(name: str, prompt: int, max_tokens: int = 4, stop: tuple[int, ...] = (), output: int = 0) -> Sequence:
    """Prompts of different names share nothing."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, stop_token_ids=stop)
    return Sequence(name, [1000 * ord(name[0]) + at for at in range(prompt)], params, [7] * output)


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(AttentionConfig(**{"block_size": 4, "num_blocks": 32, **limits}))


def spans(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(c.sequence.request_id, c.start, c.length) for c in plan.chunks]


def advance(batch: Scheduler, token: int = 7) -> list[tuple[str, int, int]]:
    """One step in which every sampling chunk yields `token`."""
    plan = batch.schedule()
    batch.commit(plan)
    for chunk in plan.chunks:
        if chunk.sequence.num_pending == 0:
            chunk.sequence.append(token)
            if chunk.sequence.finish_reason:
                batch.remove(chunk.sequence.request_id)
    return spans(plan)


def test_a_prompt_is_cut_into_chunks_then_decodes() -> None:
    batch = scheduler(prefill_chunk=4)
    batch.add(sequence("a", prompt=10, max_tokens=3))
    steps = [advance(batch) for _ in range(6)]
    assert steps == [[("a", 0, 4)], [("a", 4, 4)], [("a", 8, 2)], [("a", 10, 1)], [("a", 11, 1)], []]


def test_decodes_go_before_a_long_prefill() -> None:
    batch = scheduler(prefill_chunk=4, max_step_tokens=5)
    batch.add(sequence("a", prompt=2, max_tokens=8))
    assert advance(batch) == [("a", 0, 2)]
    batch.add(sequence("b", prompt=9))
    assert advance(batch) == [("a", 2, 1), ("b", 0, 4)]
    assert advance(batch) == [("a", 3, 1), ("b", 4, 4)]
    # The last token of a prompt alone counts as a decode: order among decodes is by who waited longest.
    assert sorted(advance(batch)) == [("a", 4, 1), ("b", 8, 1)]
    assert sorted(advance(batch)) == [("a", 5, 1), ("b", 9, 1)]


def test_half_the_prefill_budget_is_the_oldest_prompts_and_the_rest_the_shortest() -> None:
    batch = scheduler(prefill_chunk=8, num_blocks=100)
    for name, length in (("a", 100), ("b", 50), ("c", 3)):
        batch.add(sequence(name, prompt=length))
    assert advance(batch) == [("a", 0, 4), ("b", 0, 1), ("c", 0, 3)]
    assert advance(batch)[1:] == [("a", 4, 4), ("b", 1, 4)]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    batch = scheduler(prefill_chunk=256, block_size=16, num_blocks=10_000)
    batch.add(sequence("long", prompt=100_000))
    advance(batch)
    batch.add(sequence("short", prompt=100))
    assert ("short", 0, 100) in advance(batch)


@given(num_pending=st.lists(st.integers(1, 300), max_size=10), budget=st.integers(1, 512))
def test_a_prefill_budget_is_spent_where_it_can_be(num_pending: list[int], budget: int) -> None:
    shares = share_budget(num_pending, budget)
    assert sum(shares) == min(budget, sum(num_pending))
    assert all(0 <= share <= pending for share, pending in zip(shares, num_pending, strict=True))
    if num_pending:
        assert shares[0] >= min(num_pending[0], budget / 2)
    others = sorted(zip(num_pending[1:], shares[1:], strict=True), key=lambda pair: (pair[0], -pair[1]))
    served = [pending == share for pending, share in others]
    assert served == sorted(served, reverse=True), "a longer prompt was served whole before a shorter one"


def test_a_budget_smaller_than_the_batch_reaches_everyone_in_turn() -> None:
    batch = scheduler(max_step_tokens=2)
    for name in "abc":
        batch.add(sequence(name, prompt=1, max_tokens=20))
    seen = [name for _ in range(6) for name, _, _ in advance(batch)]
    assert {name: seen.count(name) for name in "abc"} == {"a": 4, "b": 4, "c": 4}


def test_prompts_get_their_blocks_at_once_and_tokens_as_they_come() -> None:
    batch = scheduler(num_blocks=6)
    batch.add(sequence("a", prompt=7, max_tokens=6))
    assert batch.tables.pool.num_free == 4
    assert advance(batch) == [("a", 0, 7)]
    assert advance(batch) == [("a", 7, 1)]
    assert batch.tables.pool.num_free == 4
    assert advance(batch) == [("a", 8, 1)]
    assert batch.tables.pool.num_free == 3
    for _ in range(3):
        advance(batch)
    assert batch.tables.pool.num_free == 6
    assert batch.num_running == 0


def test_the_youngest_gives_its_blocks_to_the_older() -> None:
    batch = scheduler(num_blocks=6)
    for name in "abc":
        assert batch.add(sequence(name, prompt=8, max_tokens=8))
    advance(batch)
    plan = batch.schedule()
    assert [s.request_id for s in plan.preempted] == ["c"]
    assert sorted(c.sequence.request_id for c in plan.decodes) == ["a", "b"]
    assert batch.num_preempted == 1
    assert batch.tables.pool.num_free == 0


def test_the_youngest_goes_itself_when_it_is_the_one_in_need() -> None:
    batch = scheduler(num_blocks=4)
    batch.add(sequence("a", prompt=6, max_tokens=3))
    batch.add(sequence("b", prompt=8, max_tokens=8))
    advance(batch)
    plan = batch.schedule()
    assert [s.request_id for s in plan.preempted] == ["b"]
    assert spans(plan) == [("a", 6, 1)]


def test_what_finds_no_blocks_or_slot_now_goes_back_to_the_router() -> None:
    batch = scheduler(num_blocks=4, max_num_seqs=2)
    assert batch.add(sequence("a", prompt=9))
    assert not batch.add(sequence("b", prompt=5))
    assert batch.add(sequence("c", prompt=4))
    assert not batch.add(sequence("d", prompt=1))
    assert batch.num_preempted == 0
    assert batch.tables.pool.num_free == 0


def test_what_can_never_run_is_refused_by_name() -> None:
    batch = scheduler(num_blocks=4)
    batch.add(sequence("a", prompt=1))
    with pytest.raises(RequestError, match="'a' is already running"):
        batch.add(sequence("a", prompt=1))
    with pytest.raises(RequestError, match="request: needs 5 KV blocks, this worker has 4"):
        batch.add(sequence("b", prompt=15, max_tokens=2))
    with pytest.raises(RequestError, match="output_token_ids: 4 leave none of max_tokens to generate"):
        batch.add(sequence("c", prompt=2, max_tokens=4, output=4))
    assert batch.tables.pool.num_free == 3


def test_a_sequence_goes_on_from_its_output() -> None:
    batch = scheduler()
    batch.add(sequence("a", prompt=5, max_tokens=4, output=2))
    steps = [advance(batch) for _ in range(3)]
    assert steps == [[("a", 0, 7)], [("a", 7, 1)], []]


def test_a_prompt_that_another_is_computing_is_waited_for_and_shared() -> None:
    batch = scheduler(prefill_chunk=8)
    for number in range(3):
        batch.add(Sequence(str(number), [*range(18), 100 + number], SamplingParams(temperature=0, max_tokens=1)))
    assert advance(batch) == [("0", 0, 8)]
    assert advance(batch) == [("0", 8, 8)]
    # The full blocks were the same; behind them they differ.
    assert sorted(advance(batch)) == [("0", 16, 3), ("1", 16, 3), ("2", 16, 2)]
    assert advance(batch) == [("2", 18, 1)]
    assert batch.num_running == 0
    assert batch.tables.num_hit == 2 * 16
    assert batch.tables.num_queried == 3 * 19


def test_who_computes_a_shared_prompt_may_leave_and_the_next_takes_over() -> None:
    batch = scheduler(prefill_chunk=8)
    for name in ("0", "1"):
        batch.add(Sequence(name, list(range(20)), SamplingParams(temperature=0, max_tokens=1)))
    advance(batch)
    batch.remove("0")
    assert advance(batch) == [("1", 8, 8)]


def test_removing_an_unknown_sequence_changes_nothing() -> None:
    batch = scheduler()
    batch.remove("finished long ago")
    assert batch.tables.pool.num_free == 32


def test_a_sequence_ends_on_a_stop_token_or_on_its_length() -> None:
    stopped, full = sequence("a", 2, max_tokens=5, stop=(9,)), sequence("b", 2, max_tokens=2)
    stopped.append(1)
    assert stopped.finish_reason is None
    stopped.append(9)
    assert stopped.finish_reason is FinishReason.STOP
    full.append(1)
    full.append(2)
    assert full.finish_reason is FinishReason.LENGTH
    assert full.num_generated == 2


@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    max_tokens=st.integers(1, 6),
    max_step_tokens=st.integers(1, 32),
    prefill_chunk=st.integers(1, 32),
)
def test_every_token_runs_once_within_budget(
    prompts: list[int], max_tokens: int, max_step_tokens: int, prefill_chunk: int
) -> None:
    batch = scheduler(num_blocks=1000, max_step_tokens=max_step_tokens, prefill_chunk=prefill_chunk)
    for number, prompt in enumerate(prompts):
        batch.add(sequence(chr(97 + number), prompt, max_tokens))
    ran: dict[str, list[int]] = {chr(97 + number): [] for number in range(len(prompts))}
    for _ in range(sum(prompts) + len(prompts) * max_tokens + 1):
        step = advance(batch)
        assert sum(length for _, _, length in step) <= max_step_tokens
        for name, start, length in step:
            ran[name] += range(start, start + length)
    assert batch.num_running == 0
    assert batch.tables.pool.num_free == 1000
    assert ran == {chr(97 + n): list(range(prompt + max_tokens - 1)) for n, prompt in enumerate(prompts)}
