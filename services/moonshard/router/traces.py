"""What is known of the routing of traced requests: bounded, the slowest iterations in full, the others in sums.

Expert ids give prompts away (arXiv 2410.22884), so whoever reads this brings the operator's key.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from moonshard.v1 import control_pb2 as pb

# Iterations of one sequence that are kept in full.
STEPS_KEPT = 32


@dataclass(slots=True)
class Trace:
    """One choice of a request. slowest: a heap of (seconds, number, step)."""

    request_id: str
    choice: int
    num_steps: int = 0
    seconds: float = 0.0
    num_last: list[int] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    first: pb.RoutingStep | None = None
    slowest: list[tuple[float, int, pb.RoutingStep]] = field(default_factory=list)
    rank: int = 0

    def add(self, step: pb.RoutingStep, number: int) -> None:
        self.num_steps += 1
        self.seconds += step.seconds
        for route in step.layers:
            self._count(route)
        if self.first is None:
            self.first = step
            return
        keep = heapq.heappush if len(self.slowest) < STEPS_KEPT - 1 else heapq.heappushpop
        keep(self.slowest, (step.seconds, number, step))

    def _count(self, route: pb.LayerRoute) -> None:
        if len(self.wait_s) < len(route.wait_s):
            self.wait_s += [0.0] * (len(route.wait_s) - len(self.wait_s))
            self.num_last += [0] * (len(route.wait_s) - len(self.num_last))
        for shard, wait_s in enumerate(route.wait_s):
            self.wait_s[shard] += wait_s
        if (last := last_shard(route)) is not None:
            self.num_last[last] += 1

    @property
    def steps(self) -> Sequence[pb.RoutingStep]:
        """In the order in which they ran."""
        first = [self.first] if self.first else []
        return [*first, *(step for _, _, step in sorted(self.slowest, key=lambda kept: kept[1]))]


class TraceBook:
    """Of the last `kept` traced sequences. Runs in the event loop's thread. on_end: told of each that is over."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self.on_end: Callable[[Trace], None] | None = None
        self._traces: OrderedDict[str, Trace] = OrderedDict()  # by sequence id
        self._numbers = itertools.count()

    def begin(self, sequence_id: str, request_id: str, choice: int) -> None:
        """A sequence that is traced."""
        self._traces[sequence_id] = Trace(request_id, choice)
        while len(self._traces) > self._kept:
            self._traces.popitem(last=False)

    def add(self, rank: int, steps: Iterable[pb.RoutingStep]) -> None:
        """What an attention worker tells; of sequences that are kept no more nothing is."""
        for step in steps:
            if trace := self._traces.get(step.request_id):
                trace.rank = rank
                trace.add(step, next(self._numbers))

    def ended(self, sequence_id: str) -> None:
        """A sequence is over, traced or not."""
        if self.on_end and (trace := self._traces.get(sequence_id)):
            self.on_end(trace)

    def of(self, request_id: str) -> Sequence[Trace]:
        """The choices of the last request of this id."""
        found = {trace.choice: trace for trace in self._traces.values() if trace.request_id == request_id}
        return [found[choice] for choice in sorted(found)]

    @property
    def request_ids(self) -> Sequence[str]:
        return list(dict.fromkeys(trace.request_id for trace in self._traces.values()))


def last_shard(route: pb.LayerRoute) -> int | None:
    """The shard that combine waited for longest; None when it waited for none, or nothing tells them apart."""
    if not route.wait_s or max(route.wait_s) <= 0 or min(route.wait_s) == max(route.wait_s):
        return None
    return max(range(len(route.wait_s)), key=route.wait_s.__getitem__)


def trace_response(book: TraceBook, request_id: str) -> pb.GetTraceResponse:
    """request_id: "" for the list alone."""
    found = book.of(request_id) if request_id else ()
    return pb.GetTraceResponse(sequences=map(_message, found), request_ids=book.request_ids)


def _message(trace: Trace) -> pb.SequenceTrace:
    return pb.SequenceTrace(
        request_id=trace.request_id,
        choice=trace.choice,
        num_steps=trace.num_steps,
        seconds=trace.seconds,
        steps=trace.steps,
        num_last=trace.num_last,
        wait_s=trace.wait_s,
        rank=trace.rank,
    )
