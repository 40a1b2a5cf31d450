"""The engine under any sequence of events: credits, order and ends always add up."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client import CollectorRegistry

from moonshard.errors import Overloaded
from moonshard.router.engine import Engine
from moonshard.router.flight import Flight, SequenceUpdate
from moonshard.router.membership import Credits
from moonshard.router.metrics import RouterMetrics
from moonshard.router.requests import Request
from moonshard.sampling import FinishReason, SamplingParams
from tests.unit.router.router_peers import new_flight

BLOCK_SIZE, NUM_BLOCKS, MAX_SEQS, MAX_QUEUE = 4, 10, 3, 4


class PeerWorkers:
    """Counts blocks and slots as attention workers do: refusing would be an error of the engine's."""

    def __init__(self) -> None:
        self.running: dict[int, dict[str, int]] = {}
        self.admitted: list[str] = []

    def admit(self, rank: int, flights: Sequence[Flight]) -> None:
        batch = self.running[rank]
        for flight in flights:
            assert flight.sequence_id not in self.admitted, "a sequence id is never used twice"
            batch[flight.sequence_id] = -(-flight.request.max_len // BLOCK_SIZE)
            self.admitted.append(flight.sequence_id)
        assert sum(batch.values()) <= NUM_BLOCKS
        assert len(batch) <= MAX_SEQS

    def abort(self, rank: int, sequence_ids: Sequence[str]) -> None:
        for sequence_id in sequence_ids:
            del self.running[rank][sequence_id]


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.workers = PeerWorkers()
        self.registry = CollectorRegistry()
        self.now_s = 0.0
        metrics = RouterMetrics(self.registry, "m")
        self.engine = Engine(MAX_QUEUE, self.workers, metrics, lambda: self.now_s)
        self.engine.refusal = None
        self.open: list[Flight] = []
        self.num_submitted = 0

    @rule(prompt=st.integers(1, 20), max_tokens=st.integers(1, 20))
    def submit(self, prompt: int, max_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, seed=0)
        flight = new_flight(Request("r", (1,) * prompt, sampling, self.now_s), self.num_submitted)
        try:
            self.engine.submit([flight])
            self.open.append(flight)
            self.num_submitted += 1
        except Overloaded:
            assert self.engine.num_waiting == MAX_QUEUE

    @rule(rank=st.integers(0, 1))
    def worker_comes(self, rank: int) -> None:
        if rank not in self.workers.running:
            self.workers.running[rank] = {}
            self.engine.add_worker(rank, Credits(BLOCK_SIZE, NUM_BLOCKS, MAX_SEQS, 8))

    @rule(rank=st.integers(0, 1))
    def worker_goes(self, rank: int) -> None:
        if self.workers.running.pop(rank, None) is not None:
            self.engine.remove_worker(rank, "lost")
            self._forget(flight for flight in list(self.open) if flight.rank == rank)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def caller_leaves(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(self.open))
        self.open.remove(flight)
        self.engine.abandon([flight])
        self.engine.abandon([flight])

    @precondition(lambda self: any(flight.rank is not None for flight in self.open))
    @rule(data=st.data(), error=st.booleans())
    def sequence_ends(self, data: st.DataObject, error: bool) -> None:
        flight = data.draw(st.sampled_from([flight for flight in self.open if flight.rank is not None]))
        assert flight.rank is not None
        del self.workers.running[flight.rank][flight.sequence_id]
        self.open.remove(flight)
        reason = None if error else FinishReason.LENGTH
        update = SequenceUpdate(flight.sequence_id, (1, 2), reason, error="broken" if error else "")
        self.engine.update(flight.rank, [update, update])

    @rule()
    def everything_fails(self) -> None:
        self.engine.fail_all("shard lost")
        self._forget(list(self.open))
        assert self.engine.idle.is_set()

    @invariant()
    def sums_add_up(self) -> None:
        assert self.engine.num_running == sum(len(batch) for batch in self.workers.running.values())
        assert self.engine.num_running + self.engine.num_waiting == len(self.open)
        ended = sum(self._value("moonshard_requests_total", reason) for reason in ("stop", "length", "abort", "error"))
        assert ended + len(self.open) == self.num_submitted

    @invariant()
    def those_who_wait_came_after_those_who_run(self) -> None:
        numbers = [int(flight.sequence_id.split("#")[1]) for flight in self.open if flight.rank is None]
        running = [int(sequence_id.split("#")[1]) for sequence_id in self.workers.admitted]
        assert not numbers or not running or min(numbers) > max(running)

    @invariant()
    def nobody_waits_beside_an_idle_worker(self) -> None:
        if any(not batch for batch in self.workers.running.values()):
            assert self.engine.num_waiting == 0

    def _forget(self, flights: object) -> None:
        gone = list(flights)  # type: ignore[call-overload]
        self.open = [flight for flight in self.open if flight not in gone]

    def _value(self, name: str, reason: str) -> float:
        return self.registry.get_sample_value(name, {"model_name": "m", "finish_reason": reason}) or 0.0


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
