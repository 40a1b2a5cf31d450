"""KV blocks and the prefix cache: users, eviction, names, events."""

import pytest

from moonshard.attention.block_tables import BlockTables, Cleared, Removed, Stored
from moonshard.attention.blocks import BlockPool, blocks_for
from moonshard.attention.prefix_hashes import Digest, extend_hashes, short_hash
from moonshard.attention.sequence import Sequence
from moonshard.sampling import SamplingParams


def digests(tokens: list[int], block_size: int = 4, salts: dict[int, bytes] | None = None) -> list[Digest]:
    found: list[Digest] = []
    extend_hashes(found, tokens, block_size, salts or {})
    return found


def sequence(tokens: list[int], **more: object) -> Sequence:
    return Sequence("a", tokens, SamplingParams(temperature=0, max_tokens=8, **more))  # type: ignore[arg-type]


def run(tables: BlockTables, subject: Sequence) -> Sequence:
    """Admit and compute all tokens."""
    assert tables.admit(subject)
    start, subject.num_computed_tokens = subject.num_computed_tokens, len(subject.tokens)
    tables.publish(subject, start)
    return subject


def test_the_pool_hands_out_distinct_blocks_and_takes_them_back() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert not pool.can_allocate(1)
    pool.release(first)
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release(first)


def test_a_shared_block_is_free_when_its_last_user_leaves() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    assert pool.publish(block, b"x")
    pool.share(block)
    pool.release([block])
    assert pool.num_free == 1
    pool.release([block])
    assert pool.num_free == 2
    assert pool.find(b"x") == block


def test_the_longest_unused_block_is_handed_out_last_and_forgotten_then() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.publish(block, name)
    pool.release([blocks[1], blocks[0], blocks[2]])
    pool.share(blocks[1])
    pool.release([blocks[1]])
    assert pool.allocate(1) == [blocks[0]]
    assert pool.forgotten == [b"a"]
    assert [pool.find(name) for name in (b"a", b"b", b"c")] == [None, blocks[1], blocks[2]]
    assert pool.allocate(2) == [blocks[2], blocks[1]]
    assert pool.num_known == 0


def test_a_block_of_known_content_is_not_published_twice() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    assert pool.publish(first, b"x")
    assert not pool.publish(second, b"x")
    assert not pool.publish(first, b"y")
    pool.release([second])
    assert pool.find(b"x") == first
    assert pool.find(b"y") is None


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 4) == blocks


def test_a_digest_names_a_block_and_all_before_it() -> None:
    one = digests(list(range(10)))
    assert len(one) == 2
    assert digests([*range(8), 77]) == one
    assert digests([99, *range(1, 8)])[1] != one[1]
    assert digests([4, 5, 6, 7])[0] != one[1]
    assert digests(list(range(8)), block_size=2)[1] != one[0]
    grown = digests(list(range(5)))
    extend_hashes(grown, list(range(8)), 4, {})
    assert grown == one


def test_a_salt_changes_its_block_and_those_behind_it() -> None:
    plain, salted = digests(list(range(12))), digests(list(range(12)), salts={1: b"image"})
    assert [a == b for a, b in zip(plain, salted, strict=True)] == [True, False, False]


def test_a_prompt_that_begins_alike_shares_full_blocks() -> None:
    tables = BlockTables(10, 4, prefix_cache=True)
    first = run(tables, sequence([*range(10)]))
    second = sequence([*range(9), 50])
    assert tables.admit(second)
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    assert second.num_computed_tokens == second.num_cached_tokens == 8
    assert (tables.num_queried, tables.num_hit) == (20, 8)


def test_the_last_token_of_a_prompt_is_always_run() -> None:
    tables = BlockTables(10, 4, prefix_cache=True)
    run(tables, sequence([*range(8)]))
    again = sequence([*range(8)])
    assert tables.admit(again)
    assert again.num_computed_tokens == 4


def test_blocks_outlive_their_sequence_until_they_are_needed() -> None:
    tables = BlockTables(4, 4, prefix_cache=True)
    tables.release(run(tables, sequence([*range(13)])))
    assert tables.pool.num_free == 4
    other = run(tables, sequence([*range(100, 106)]))
    third = sequence([*range(13)])
    # The end went first: what is left is the beginning.
    assert not tables.admit(third)
    assert tables.pool.num_free == 2
    tables.release(other)
    assert tables.admit(third)
    assert third.num_computed_tokens == 8


def test_prompts_whose_logprobs_are_wanted_bypass_the_cache() -> None:
    tables = BlockTables(10, 4, prefix_cache=True)
    run(tables, sequence([*range(10)]))
    scored = sequence([*range(10)], prompt_logprobs=1)
    assert tables.admit(scored)
    assert scored.num_computed_tokens == 0
    assert tables.frontier(scored) is None


def test_without_a_prefix_cache_nothing_is_shared_or_told() -> None:
    tables = BlockTables(10, 4, prefix_cache=False)
    run(tables, sequence([*range(10)]))
    second = sequence([*range(10)])
    assert tables.admit(second)
    assert (second.num_computed_tokens, tables.num_queried, tables.take_events()) == (0, 0, [])


def test_generated_tokens_enter_the_cache_when_their_block_is_full() -> None:
    tables = BlockTables(10, 4, prefix_cache=True)
    subject = run(tables, sequence([1, 2, 3]))
    for token in (4, 5):
        subject.append(token)
        tables.publish(subject, subject.num_computed_tokens)
        subject.num_computed_tokens += 1
        tables.publish(subject, subject.num_computed_tokens - 1)
    follow_up = sequence([1, 2, 3, 4, 9])
    assert tables.admit(follow_up)
    assert follow_up.num_computed_tokens == 4


def test_events_tell_what_can_be_found() -> None:
    tables = BlockTables(3, 4, prefix_cache=True)
    first, second = (short_hash(digest) for digest in digests([*range(8)]))
    subject = run(tables, sequence([*range(8)]))
    stored = [Stored(first, None, (0, 1, 2, 3)), Stored(second, first, (4, 5, 6, 7))]
    assert tables.take_events() == stored
    tables.flush()
    assert tables.take_events() == []
    tables.release(subject)
    other = run(tables, sequence([*range(20, 28)]))
    events = tables.take_events()
    assert events[0] == Removed(second)
    assert [type(event) for event in events[1:]] == [Stored, Stored]
    tables.release(other)
    tables.flush()
    assert tables.take_events()[-1] == Cleared()
    assert tables.pool.num_free == 3
    assert tables.take_events() == []


def test_what_a_failed_sequence_wrote_is_not_found_again() -> None:
    tables = BlockTables(4, 4, prefix_cache=True)
    tables.release(run(tables, sequence([*range(8)])), spoilt=True)
    again = sequence([*range(8)])
    assert tables.admit(again)
    assert again.num_computed_tokens == 0
    assert tables.pool.num_free == 2
