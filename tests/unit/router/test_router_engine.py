"""The engine under any sequence of events: no sequence lost or doubled, no gap in any output, nobody forgotten."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client import CollectorRegistry

from moonshard.errors import Overloaded
from moonshard.router.engine import LOSSES_MAX, Engine
from moonshard.router.flight import Flight, SequenceUpdate
from moonshard.router.members import Credits
from moonshard.router.metrics import RouterMetrics
from moonshard.router.requests import Request
from moonshard.sampling import SamplingParams
from tests.unit.router.router_peers import new_flight
from tests.unit.router.simulated_worker import SimulatedWorker, token

CREDITS = Credits(block_size=4, num_blocks=10, max_num_seqs=3, max_step_tokens=6)
MAX_QUEUE = 6


class Workers:
    def __init__(self) -> None:
        self.by_rank: dict[int, SimulatedWorker] = {}

    def admit(self, rank: int, flights: Sequence[Flight]) -> None:
        self.by_rank[rank].admit(flights)

    def abort(self, rank: int, sequence_ids: Sequence[str]) -> None:
        self.by_rank[rank].abort(sequence_ids)


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.workers = Workers()
        self.registry = CollectorRegistry()
        self.engine = Engine(MAX_QUEUE, self.workers, RouterMetrics(self.registry, "m"), lambda: 0.0)
        self.engine.refusal = None
        self.open: list[Flight] = []
        self.num_submitted = 0

    @rule(prompt=st.integers(1, 20), max_tokens=st.integers(1, 20), tenant=st.sampled_from("ab"), n=st.integers(1, 2))
    def submit(self, prompt: int, max_tokens: int, tenant: str, n: int) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, seed=0)
        request = Request("r", (1,) * prompt, sampling, 0.0, tenant)
        flights = [new_flight(request, self.num_submitted + number) for number in range(n)]
        try:
            self.engine.submit(flights)
            self.open += flights
            self.num_submitted += n
        except Overloaded:
            assert self.engine.num_waiting + n > MAX_QUEUE

    @rule(rank=st.integers(0, 1))
    def worker_comes(self, rank: int) -> None:
        if rank not in self.workers.by_rank:
            self.workers.by_rank[rank] = SimulatedWorker(CREDITS)
            self.engine.add_worker(rank, CREDITS)

    @rule(rank=st.integers(0, 1))
    def worker_goes(self, rank: int) -> None:
        if self.workers.by_rank.pop(rank, None):
            gone = [flight for flight in self.open if flight.rank == rank]
            self.engine.remove_worker(rank, "lost")
            self._forget(gone)

    @rule(rank=st.integers(0, 1))
    def worker_goes_and_its_sequences_go_on(self, rank: int) -> None:
        if self.workers.by_rank.pop(rank, None):
            running = [flight for flight in self.open if flight.rank == rank]
            doomed = [flight for flight in running if flight.num_losses == LOSSES_MAX - 1]
            assert self.engine.readmit_worker(rank, "lost") == len(running) - len(doomed)
            self._forget(doomed)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def caller_leaves(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(self.open))
        self.open.remove(flight)
        self.engine.abandon([flight])
        self.engine.abandon([flight])

    @rule(rank=st.integers(0, 1), num_steps=st.integers(1, 8))
    def worker_runs(self, rank: int, num_steps: int) -> None:
        if worker := self.workers.by_rank.get(rank):
            for _ in range(num_steps):
                updates, _ = worker.step()
                self.engine.update(rank, updates, worker.free())
            self._forget([flight for flight in self.open if flight.output.is_finished])

    @rule()
    def everything_fails(self) -> None:
        self.engine.fail_all("shard lost")
        self._forget(list(self.open))
        assert self.engine.idle.is_set()

    @invariant()
    def sums_add_up(self) -> None:
        assert self.engine.num_running + self.engine.num_waiting == len(self.open)
        ended = sum(self._value("moonshard_requests_total", reason) for reason in ("stop", "length", "abort", "error"))
        assert ended + len(self.open) == self.num_submitted

    @invariant()
    def outputs_have_neither_gap_nor_repeat(self) -> None:
        for flight in self.open:
            assert flight.output.token_ids == [token(position) for position in range(flight.num_generated)]

    @invariant()
    def nobody_waits_beside_an_idle_worker(self) -> None:
        if any(worker.is_idle for worker in self.workers.by_rank.values()):
            assert self.engine.num_waiting == 0

    def teardown(self) -> None:
        """Whatever happened, all that is left gets through."""
        self.worker_comes(0)
        for _ in range(2000):
            if not self.open:
                break
            for rank in list(self.workers.by_rank):
                self.worker_runs(rank, 1)
        assert not self.open, f"{len(self.open)} never end"
        for rank, worker in self.workers.by_rank.items():
            worker.step()
            assert worker.is_idle
            assert worker.num_free_blocks == CREDITS.num_blocks
            self.engine.update(rank, [], worker.free())

    def _forget(self, gone: Sequence[Flight]) -> None:
        self.open = [flight for flight in self.open if flight not in gone]

    def _value(self, name: str, reason: str) -> float:
        return self.registry.get_sample_value(name, {"model_name": "m", "finish_reason": reason}) or 0.0


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_sequence_that_fails_leaves_the_others_alone() -> None:
    workers = Workers()
    workers.by_rank[0] = SimulatedWorker(CREDITS)
    engine = Engine(MAX_QUEUE, workers, RouterMetrics(CollectorRegistry(), "m"), lambda: 0.0)
    engine.refusal = None
    engine.add_worker(0, CREDITS)
    flights = [new_flight(Request("r", (1, 2), SamplingParams(max_tokens=4, seed=0), 0.0), n) for n in range(2)]
    engine.submit(flights)
    engine.update(0, [SequenceUpdate(flights[0].sequence_id, (97,), error="non-finite logits")])
    assert (engine.num_running, flights[0].answer.is_open, flights[1].answer.is_open) == (1, False, True)
