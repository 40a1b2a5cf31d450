"""Scheduler and blocks under any load: nothing lost, nothing shared wrongly, everything ends, the same tokens come out.

A router's twin admits, takes preempted sequences back and admits them again. The model's twin draws a token that
depends on all before it, and keeps in every slot what the real one would: something of the token there and all before.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.attention.blocks import blocks_for
from moonshard.attention.plan import Chunk
from moonshard.attention.scheduler import Scheduler
from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.sampling import SamplingParams

VOCABULARY = 3
MAX_STEPS = 5000


@dataclass
class Job:
    name: str
    prompt: list[int]
    max_tokens: int
    leaves_after: int
    output: list[int] = field(default_factory=list)


def next_token(tokens: list[int]) -> int:
    return hash(tuple(tokens)) % VOCABULARY


def expected_output(job: Job) -> list[int]:
    tokens = list(job.prompt)
    for _ in range(job.max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(job.prompt) :]


class Twin:
    """Router and model around a real scheduler."""

    def __init__(self, limits: AttentionConfig, jobs: list[Job], is_careless: bool) -> None:
        self.scheduler = Scheduler(limits)
        self.jobs = {job.name: job for job in jobs}
        self.waiting = deque(jobs)
        self.running: dict[str, Sequence] = {}
        self.slots: dict[int, int] = {}
        self.is_careless = is_careless
        self.num_preempted = 0

    def iterate(self) -> None:
        self._admit()
        plan = self.scheduler.schedule()
        for sequence in plan.preempted:
            assert all(sequence.number > other.number for other in self.running.values() if other.block_table)
            del self.running[sequence.request_id]
            self.waiting.appendleft(self.jobs[sequence.request_id])
        self.num_preempted += len(plan.preempted)
        self._check_blocks()
        for chunk in plan.chunks:
            self._run(chunk)
        self.scheduler.commit(plan)
        for chunk in plan.chunks:
            if chunk.sequence.num_pending == 0:
                self._take(chunk.sequence)
        self._check_blocks()

    def _admit(self) -> None:
        while self.waiting and self._invites(self.waiting[0]):
            job = self.waiting.popleft()
            sampling = SamplingParams(temperature=0, max_tokens=job.max_tokens)
            sequence = Sequence(job.name, job.prompt, sampling, list(job.output))
            if not self.scheduler.add(sequence):
                self.waiting.appendleft(job)
                return
            self.running[job.name] = sequence

    def _invites(self, job: Job) -> bool:
        limits, free = self.scheduler.limits, self.scheduler.tables.pool.num_free
        needed = blocks_for(len(job.prompt) + len(job.output), limits.block_size) + 1
        fits = len(self.running) < limits.max_num_seqs and min(needed, limits.num_blocks) <= free
        return fits or self.is_careless

    def _run(self, chunk: Chunk) -> None:
        sequence, size = chunk.sequence, self.scheduler.limits.block_size
        for position in range(chunk.start + chunk.length):
            slot = sequence.block_table[position // size] * size + position % size
            content = hash(tuple(sequence.tokens[: position + 1]))
            if position >= chunk.start:
                self.slots[slot] = content
            assert self.slots[slot] == content, "attention would read what is not its own"

    def _take(self, sequence: Sequence) -> None:
        job = self.jobs[sequence.request_id]
        job.output.append(next_token(sequence.tokens))
        sequence.append(job.output[-1])
        if sequence.finish_reason or len(job.output) == job.leaves_after:
            self.scheduler.remove(job.name)
            del self.running[job.name]

    def _check_blocks(self) -> None:
        named = Counter(block for s in self.running.values() for block in s.block_table)
        pool = self.scheduler.tables.pool
        assert pool.num_free == pool.num_blocks - len(named)
        assert self.scheduler.num_running == len(self.running)


jobs = st.lists(
    st.tuples(
        st.integers(0, 20),  # of a beginning that all share
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12),
        st.integers(1, 12),
        st.integers(1, 20),
    ),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=200)
@given(
    found=jobs,
    block_size=st.integers(1, 5),
    spare=st.integers(0, 12),
    max_num_seqs=st.integers(1, 6),
    max_step_tokens=st.integers(1, 30),
    prefill_chunk=st.integers(1, 30),
    prefix_cache=st.booleans(),
    is_careless=st.booleans(),
)
def test_any_load_ends_with_the_same_tokens(
    found: list[tuple[int, list[int], int, int]],
    block_size: int,
    spare: int,
    max_num_seqs: int,
    max_step_tokens: int,
    prefill_chunk: int,
    prefix_cache: bool,
    is_careless: bool,
) -> None:
    prefix = [at % VOCABULARY for at in range(20)]
    work = [Job(str(n), prefix[:shared] + own, tokens, end) for n, (shared, own, tokens, end) in enumerate(found)]
    # As small as the longest allows: alone it must fit.
    least = max(blocks_for(len(job.prompt) + job.max_tokens, block_size) for job in work)
    limits = AttentionConfig(
        block_size=block_size,
        num_blocks=least + spare,
        max_num_seqs=max_num_seqs,
        max_step_tokens=max_step_tokens,
        prefill_chunk=prefill_chunk,
        prefix_cache=prefix_cache,
    )
    twin = Twin(limits, work, is_careless)
    for _ in range(MAX_STEPS):
        if not (twin.waiting or twin.running):
            break
        twin.iterate()
    assert not twin.waiting
    assert not twin.running
    assert twin.scheduler.tables.pool.num_free == limits.num_blocks
    assert twin.scheduler.num_preempted == twin.num_preempted
    for job in work:
        assert job.output == expected_output(job)[: job.leaves_after]


def test_a_cache_too_small_for_all_preempts_and_still_serves_all() -> None:
    work = [Job(str(n), [n % VOCABULARY] * 8 + [n], 16, 99) for n in range(8)]
    limits = AttentionConfig(block_size=4, num_blocks=10, max_num_seqs=8)
    twin = Twin(limits, work, is_careless=False)
    while twin.waiting or twin.running:
        twin.iterate()
    assert twin.num_preempted >= 3
    assert [job.output for job in work] == [expected_output(job) for job in work]
