"""Which experts a traced sequence's rows chose in each layer, and how long its iteration waited for each shard.

Iterations without a traced sequence pay one comparison in each layer. Nothing is kept here: the router keeps what it
is told.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

from torch import Tensor

from moonshard.attention.plan import Chunk, StepPlan
from moonshard.v1 import control_pb2 as pb

EXPERTS_MAX = 32


class RoutingTrace:
    """wait_s: seconds that `combine` has waited for each shard since the start (`TransportStats`). One thread."""

    def __init__(self, wait_s: Callable[[], Sequence[float]]) -> None:
        self._wait_s = wait_s
        self._watched: list[tuple[Chunk, slice]] = []
        self._routes: list[list[pb.LayerRoute]] = []
        self._before: Sequence[float] = ()

    @property
    def is_watching(self) -> bool:
        return bool(self._watched)

    @contextmanager
    def of(self, plan: StepPlan, send: Callable[[pb.WorkerMessage], None]) -> Iterator[None]:
        """Around an iteration: tells at its end what became of the traced sequences in it."""
        self._watched = _watched(plan)
        if not self._watched:
            yield
            return
        self._routes = [[] for _ in self._watched]
        started = time.perf_counter()
        try:
            yield
            send(self._message(plan.num_tokens, time.perf_counter() - started))
        finally:
            self._watched = []

    def dispatched(self, layer: int, topk_ids_TK: Tensor) -> None:
        """The rows of a layer are on their way. topk_ids_TK: of all rows of the iteration."""
        self._before = self._wait_s()
        for (_, rows), routes in zip(self._watched, self._routes, strict=True):
            routes.append(pb.LayerRoute(layer=layer, experts=_experts(topk_ids_TK[rows])))

    def combined(self, took_s: float) -> None:
        """The answers of the layer dispatched last are there."""
        # Links that were opened meanwhile have waited for nothing before.
        waits = [after - before for after, before in zip_longest(self._wait_s(), self._before, fillvalue=0.0)]
        for routes in self._routes:
            routes[-1].combine_s = took_s
            routes[-1].wait_s[:] = waits

    def _message(self, num_rows: int, seconds: float) -> pb.WorkerMessage:
        now_s = time.time()
        steps = [
            pb.RoutingStep(
                request_id=chunk.sequence.request_id,
                position=chunk.start,
                num_tokens=chunk.length,
                num_rows=num_rows,
                seconds=seconds,
                ended_at_s=now_s,
                layers=routes,
            )
            for (chunk, _), routes in zip(self._watched, self._routes, strict=True)
        ]
        return pb.WorkerMessage(routing=pb.RoutingSteps(steps=steps))


def _watched(plan: StepPlan) -> list[tuple[Chunk, slice]]:
    """Chunks of traced sequences, and which of the iteration's rows are theirs."""
    found, start = [], 0
    for chunk in plan.chunks:
        if chunk.sequence.traced:
            found.append((chunk, slice(start, start + chunk.length)))
        start += chunk.length
    return found


def _experts(topk_ids_TK: Tensor) -> list[int]:
    if len(topk_ids_TK) == 1:
        return topk_ids_TK[0].tolist()
    counts = Counter(topk_ids_TK.flatten().tolist())
    return [expert for expert, _ in counts.most_common(EXPERTS_MAX)]
