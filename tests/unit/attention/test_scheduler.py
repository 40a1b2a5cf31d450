"""The batch of the attention worker: who runs in a step, and whose blocks are whose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.attention.blocks import BlockPool, blocks_for
from moonshard.attention.scheduler import Scheduler, StepPlan
from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.errors import RequestError
from moonshard.sampling import FinishReason, SamplingParams


def sequence(name: str, prompt: int, max_tokens: int = 4, stop: tuple[int, ...] = ()) -> Sequence:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, stop_token_ids=stop)
    return Sequence(name, list(range(prompt)), params)


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


def test_two_prompts_share_a_prefill_budget_in_order_of_arrival() -> None:
    batch = scheduler(prefill_chunk=6)
    batch.add(sequence("a", prompt=4))
    batch.add(sequence("b", prompt=4))
    assert advance(batch) == [("a", 0, 4), ("b", 0, 2)]
    assert advance(batch) == [("a", 4, 1), ("b", 2, 2)]


def test_a_budget_smaller_than_the_batch_reaches_everyone_in_turn() -> None:
    batch = scheduler(max_step_tokens=2)
    for name in "abc":
        batch.add(sequence(name, prompt=1, max_tokens=20))
    seen = [name for _ in range(6) for name, _, _ in advance(batch)]
    assert {name: seen.count(name) for name in "abc"} == {"a": 4, "b": 4, "c": 4}


def test_blocks_are_reserved_whole_and_freed_at_the_end() -> None:
    batch = scheduler(num_blocks=4)
    batch.add(sequence("a", prompt=5, max_tokens=4))
    assert batch.blocks.num_free == 1
    with pytest.raises(RequestError, match="needs 2 KV blocks, 1 are free"):
        batch.add(sequence("b", prompt=5, max_tokens=1))
    for _ in range(4):
        advance(batch)
    assert batch.blocks.num_free == 4
    assert batch.num_running == 0


def test_slots_and_duplicates_are_refused_by_name() -> None:
    batch = scheduler(max_num_seqs=1)
    batch.add(sequence("a", prompt=1))
    with pytest.raises(RequestError, match="'a' is already running"):
        batch.add(sequence("a", prompt=1))
    with pytest.raises(RequestError, match="all 1 sequence slots are taken"):
        batch.add(sequence("b", prompt=1))


def test_removing_an_unknown_sequence_changes_nothing() -> None:
    batch = scheduler()
    batch.remove("finished long ago")
    assert batch.blocks.num_free == 32


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
        batch.add(sequence(str(number), prompt, max_tokens))
    ran: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    for _ in range(sum(prompts) + len(prompts) * max_tokens + 1):
        step = advance(batch)
        assert sum(length for _, _, length in step) <= max_step_tokens
        for name, start, length in step:
            ran[name] += range(start, start + length)
    assert batch.num_running == 0
    assert batch.blocks.num_free == 1000
    assert ran == {str(n): list(range(prompt + max_tokens - 1)) for n, prompt in enumerate(prompts)}


def test_block_pool_hands_out_distinct_blocks_and_takes_them_back() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert not pool.can_allocate(1)
    pool.free(first)
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(first)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 4) == blocks
