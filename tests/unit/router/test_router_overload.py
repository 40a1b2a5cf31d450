"""Fairness and overload in virtual time: the real engine, a simulated worker, arrivals by the thousand."""

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from moonshard.errors import MoonshardError, Overloaded
from moonshard.router.engine import Engine
from moonshard.router.flight import Flight
from moonshard.router.members import Credits
from moonshard.router.metrics import RouterMetrics
from moonshard.router.requests import Request
from moonshard.sampling import SamplingParams
from tests.unit.router.router_peers import new_flight
from tests.unit.router.simulated_worker import SimulatedWorker

# Of one iteration over a full batch and a full prefill budget.
LONGEST_STEP_S = 0.004 + 0.00005 * 128

CREDITS = Credits(block_size=16, num_blocks=512, max_num_seqs=16, max_step_tokens=128)
STEP_S, TOKEN_S = 0.004, 0.00005


@dataclass(order=True)
class Arrival:
    at_s: float
    prompt: int = field(default=20, compare=False)
    max_tokens: int = field(default=30, compare=False)
    tenant: str = field(default="", compare=False)
    patience_s: float | None = field(default=None, compare=False)


@dataclass
class Outcome:
    arrival: Arrival
    first_s: float | None = None
    end_s: float | None = None
    refused: MoonshardError | None = None
    gave_up: bool = False

    @property
    def wait_s(self) -> float:
        """For the first token."""
        assert self.first_s is not None, "it never got one"
        return self.first_s - self.arrival.at_s

    @property
    def whole_s(self) -> float:
        assert self.end_s is not None, "it never ended"
        return self.end_s - self.arrival.at_s


class Simulation:
    def __init__(self, credits: Credits = CREDITS, max_queue: int = 4096) -> None:
        self.now_s = 0.0
        self.worker = SimulatedWorker(credits)
        self.engine = Engine(max_queue, self, RouterMetrics(CollectorRegistry(), "m"), lambda: self.now_s)
        self.engine.refusal = None
        self.engine.add_worker(0, credits)
        self._open: dict[str, tuple[Flight, Outcome]] = {}
        self._deadlines: list[tuple[float, str]] = []

    def admit(self, rank: int, flights: Sequence[Flight]) -> None:
        self.worker.admit(flights)

    def abort(self, rank: int, sequence_ids: Sequence[str]) -> None:
        self.worker.abort(sequence_ids)

    def run(self, arrivals: Iterable[Arrival], until_s: float = 1e9) -> list[Outcome]:
        """Until all have ended, or until_s."""
        coming = list(arrivals)
        heapq.heapify(coming)
        outcomes = []
        while (coming or self._open) and self.now_s < until_s:
            while coming and coming[0].at_s <= self.now_s:
                outcomes.append(self._arrive(heapq.heappop(coming), len(outcomes)))
            if self.worker.is_idle:
                assert not self.engine.num_waiting, "somebody waits beside an idle worker"
                self.now_s = coming[0].at_s if coming else self.now_s
                continue
            self._step()
        return outcomes

    def _arrive(self, arrival: Arrival, number: int) -> Outcome:
        deadline_s = arrival.at_s + arrival.patience_s if arrival.patience_s else None
        sampling = SamplingParams(max_tokens=arrival.max_tokens, seed=0)
        request = Request("r", (1,) * arrival.prompt, sampling, arrival.at_s, arrival.tenant, deadline_s=deadline_s)
        flight, outcome = new_flight(request, number), Outcome(arrival)
        try:
            self.engine.submit([flight])
            self._open[flight.sequence_id] = (flight, outcome)
            if deadline_s is not None:
                heapq.heappush(self._deadlines, (deadline_s, flight.sequence_id))
        except MoonshardError as error:
            outcome.refused = error
        return outcome

    def _step(self) -> None:
        updates, num_tokens = self.worker.step()
        self.now_s += STEP_S + TOKEN_S * num_tokens
        self.engine.update(0, updates, self.worker.free())
        for update in updates:
            if update.sequence_id in self._open:
                self._note(update.sequence_id)
        while self._deadlines and self._deadlines[0][0] < self.now_s:
            _, name = heapq.heappop(self._deadlines)
            if name in self._open:
                flight, outcome = self._open.pop(name)
                outcome.gave_up = True
                self.engine.abandon([flight])

    def _note(self, name: str) -> None:
        flight, outcome = self._open[name]
        if flight.num_generated and outcome.first_s is None:
            outcome.first_s = self.now_s
        if flight.output.is_finished:
            outcome.end_s = self.now_s
            del self._open[name]


def crowd(count: int, tenant: str, at_s: float = 0.0, **values: int) -> list[Arrival]:
    return [Arrival(at_s, tenant=tenant, **values) for _ in range(count)]


def test_one_request_beside_a_thousand_waits_at_most_three_times_as_long() -> None:
    idle = Simulation().run([Arrival(0.5, tenant="one")])[0]
    for at_s in (0.0, 0.31, 0.5, 0.77, 1.3):
        busy = Simulation().run([*crowd(1000, "many"), Arrival(at_s, tenant="one")])
        (one,) = [outcome for outcome in busy if outcome.arrival.tenant == "one"]
        assert one.whole_s <= 3 * idle.whole_s, (at_s, one.whole_s, idle.whole_s)
        # To the first token it takes one short step on an idle worker, and here no more than a few long ones.
        assert one.wait_s <= 3 * LONGEST_STEP_S, (at_s, one.wait_s, idle.wait_s)
        assert all(outcome.end_s for outcome in busy)


def test_the_crowds_long_answers_do_not_hold_up_the_one_either() -> None:
    idle = Simulation().run([Arrival(0.5, tenant="one")])[0]
    busy = Simulation().run([*crowd(1000, "many", max_tokens=300), Arrival(1.0, tenant="one")])
    (one,) = [outcome for outcome in busy if outcome.arrival.tenant == "one"]
    assert one.whole_s <= 3 * idle.whole_s
    assert one.wait_s <= 3 * idle.wait_s


def test_a_long_prompt_gets_through_a_stream_of_small_ones() -> None:
    draw = random.Random(1)
    smalls = [Arrival(draw.uniform(0, 20)) for _ in range(2000)]
    long = Arrival(0.5, prompt=6000, max_tokens=10)  # three quarters of the cache
    simulation = Simulation()
    outcomes = simulation.run([*smalls, long])
    (found,) = [outcome for outcome in outcomes if outcome.arrival is long]
    assert all(outcome.end_s for outcome in outcomes)
    assert found.wait_s < 5.0
    during = [o for o in outcomes if o.arrival is not long and 0.5 < o.arrival.at_s < 0.5 + found.wait_s]
    assert sum(o.wait_s < 1.0 for o in during) > len(during) / 2  # and they are not stopped by it


def capacity() -> float:
    """Requests a second when there is always another one."""
    outcomes = Simulation().run(crowd(600, ""))
    return len(outcomes) / max(outcome.end_s or 0.0 for outcome in outcomes)


def offered(times: float, seconds: float, rate: float, patience_s: float) -> list[Arrival]:
    draw = random.Random(0)
    return [Arrival(draw.uniform(0, seconds), patience_s=patience_s) for _ in range(round(times * rate * seconds))]


def test_ten_times_too_much_leaves_nine_tenths_of_the_capacity_for_good_answers() -> None:
    rate, seconds, patience_s = capacity(), 30.0, 4.0
    outcomes = Simulation(max_queue=1024).run(offered(10, seconds, rate, patience_s), until_s=seconds)
    good = [outcome for outcome in outcomes if outcome.end_s and outcome.whole_s <= patience_s]
    assert len(good) >= 0.9 * rate * seconds, (len(good) / seconds, rate)
    refused = [outcome.refused for outcome in outcomes if outcome.refused]
    assert len(refused) > 0.8 * len(outcomes)
    assert all(isinstance(error, Overloaded) and error.retry_after_s >= 1.0 for error in refused)
    # Those who were let in are hardly ever let down.
    accepted = [outcome for outcome in outcomes if not outcome.refused]
    assert sum(outcome.gave_up for outcome in accepted) < 0.1 * len(accepted)


def test_overload_of_one_tenant_is_no_others_trouble() -> None:
    rate, seconds = capacity(), 10.0
    loud = [Arrival(a.at_s, tenant="loud") for a in offered(10, seconds, rate, 1.0)]
    quiet = [Arrival(0.5 + number * 0.5, tenant="quiet") for number in range(18)]
    outcomes = Simulation(max_queue=64_000).run([*loud, *quiet], until_s=seconds + 2)
    idle = Simulation().run([Arrival(0.0)])[0]
    found = [outcome for outcome in outcomes if outcome.arrival.tenant == "quiet"]
    assert len(found) == 18
    assert max(outcome.whole_s for outcome in found) <= 3 * idle.whole_s
    assert max(outcome.wait_s for outcome in found) <= 3 * LONGEST_STEP_S


def test_memory_pressure_preempts_and_loses_nothing() -> None:
    tight = Credits(block_size=16, num_blocks=48, max_num_seqs=16, max_step_tokens=128)
    simulation = Simulation(tight)
    outcomes = simulation.run(crowd(200, "", max_tokens=150))
    assert all(outcome.end_s for outcome in outcomes)
    assert simulation.worker.num_preempted > 20
    assert simulation.worker.num_free_blocks == tight.num_blocks
