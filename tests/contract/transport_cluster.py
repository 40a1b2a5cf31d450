"""Small cells for the transport tests: shards and attention workers as threads of one process, every wait limited.

Shapes: T rows, D hidden size, K experts per token.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moonshard.errors import TransportError
from moonshard.transport.all_to_all import AllToAllDispatcher, AllToAllEndpoint, join_group
from moonshard.transport.contract import Dispatcher, Endpoint, WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint
from moonshard.transport.local import LocalDispatcher
from moonshard_cluster.local.plan import free_port

TIMEOUT_S = 20.0
KINDS = ["local", "links-unix", "links-tcp", "links-unix-python", "all_to_all"]
Script = Callable[[Dispatcher], Any]


def make_spec(**changes: Any) -> WireSpec:
    fields: dict[str, Any] = {
        "hidden_size": 24,
        "top_k": 4,
        "num_experts": 48,
        "num_shards": 4,
        "moe_layers": (1, 2, 3),
        "row_dtype": torch.float32,
        "checkpoint_id": "c0ffee",
        "epoch": 7,
    }
    return WireSpec(**{**fields, **changes})


def compute(shard: int, layer: int, x_RD: Tensor, ids_RK: Tensor, weights_RK: Tensor) -> Tensor:
    """A stand-in for experts, linear and row by row, so that merging batches cannot change a bit of a row."""
    y_RD = torch.zeros(x_RD.shape, dtype=torch.float32)
    for ids_R, weights_R in zip(ids_RK.T, weights_RK.T, strict=True):
        scale_R = torch.where(ids_R >= 0, weights_R * (ids_R * 0.37 + layer * 0.11 + shard), 0.0)
        y_RD += scale_R[:, None] * x_RD.float()
    return y_RD


def make_rows(
    spec: WireSpec, num_rows: int, seed: int = 0, experts: range | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x_TD, topk_ids_TK (distinct, from `experts`), topk_weights_TK."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(experts or range(spec.num_experts))
    x_TD = torch.randn(num_rows, spec.hidden_size, generator=generator).to(spec.row_dtype)
    order = torch.rand(num_rows, len(chosen), generator=generator).argsort(dim=1)[:, : spec.top_k]
    return x_TD, chosen[order].to(torch.int32), torch.rand(num_rows, spec.top_k, generator=generator)


def expected(spec: WireSpec, layer: int, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """What the local twin says."""
    twin = LocalDispatcher(spec, compute)
    return twin.combine(twin.dispatch(layer, *rows))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype == torch.float32
        and a.shape == b.shape
        and torch.equal(a.view(torch.int32), b.view(torch.int32))
    )


class Worker(threading.Thread):
    """A thread whose result or failure reaches the one who joins it."""

    def __init__(self, task: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._task = task
        self._result: Any = None
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._task()
        except BaseException as failure:  # noqa: BLE001  handed to the joiner
            self._failure = failure

    def result(self, timeout_s: float = TIMEOUT_S) -> Any:
        self.join(timeout_s)
        assert not self.is_alive(), "a worker of the test hangs"
        if self._failure:
            raise self._failure
        return self._result


def serve(endpoint: Endpoint, shard: int, stop: threading.Event) -> None:
    """A shard's loop; a failure after `stop` is the others leaving."""
    try:
        while not stop.is_set():
            if batch := endpoint.receive(timeout_s=0.05):
                assert bool((batch.topk_ids_RK < 0).logical_or(batch.topk_ids_RK // 12 == shard).all())
                y_RD = compute(shard, batch.layer, batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK)
                endpoint.reply(batch, y_RD)
    except TransportError:
        if not stop.is_set():
            raise
    finally:
        endpoint.close()


class Cell:
    """`kind` of KINDS with spec.num_shards shards and `num_sources` attention workers. Use `run`, then `close`."""

    def __init__(self, kind: str, spec: WireSpec, num_sources: int, folder: Path) -> None:
        self.spec = spec
        self._stop = threading.Event()
        self._shards: list[Worker] = []
        if kind == "local":
            self._starts = [lambda: LocalDispatcher(spec, compute) for _ in range(num_sources)]
        elif kind == "all_to_all":
            self._start_ranks(num_sources)
        else:
            self._start_endpoints(num_sources, folder if kind.startswith("links-unix") else None)

    def run(self, scripts: Sequence[Script]) -> list[Any]:
        """Run one script per attention worker, side by side; those who finish early idle until all have."""
        unfinished = threading.Semaphore(0)
        workers = [
            Worker(lambda start=start, script=script: self._run_script(start, script, unfinished, len(scripts)))
            for start, script in zip(self._starts, scripts, strict=True)
        ]
        return [worker.result() for worker in workers]

    def close(self) -> None:
        self._stop.set()
        for shard in self._shards:
            shard.result()

    def _run_script(
        self, start: Callable[[], Dispatcher], script: Script, done: threading.Semaphore, total: int
    ) -> Any:
        dispatcher = start()
        try:
            return script(dispatcher)
        finally:
            done.release()
            self._idle_until_all_are_done(dispatcher, done, total)
            dispatcher.close()

    def _idle_until_all_are_done(self, dispatcher: Dispatcher, done: threading.Semaphore, total: int) -> None:
        try:
            while done._value < total:
                dispatcher.idle(timeout_s=0.02)
        except TransportError:
            if done._value < total:
                raise  # otherwise another worker has already left
        self._stop.set()

    def _start_endpoints(self, num_sources: int, folder: Path | None) -> None:
        shards = range(self.spec.num_shards)
        addresses = [f"unix:{folder}/{shard}.sock" if folder else "tcp:127.0.0.1:0" for shard in shards]
        endpoints = [LinkEndpoint(self.spec, shard, addresses[shard], max_rows=400) for shard in shards]
        addresses = [endpoint.address for endpoint in endpoints]
        self._shards = [Worker(lambda e=e, s=s: serve(e, s, self._stop)) for s, e in enumerate(endpoints)]
        self._starts = [
            lambda source=source: LinkDispatcher(self.spec, source, addresses, TIMEOUT_S)
            for source in range(num_sources)
        ]

    def _start_ranks(self, num_sources: int) -> None:
        address, world_size = f"127.0.0.1:{free_port()}", self.spec.num_shards + num_sources

        def join(rank: int) -> Any:
            group = join_group(address, rank, world_size, "cpu", TIMEOUT_S)
            if rank < self.spec.num_shards:
                return serve(AllToAllEndpoint(group, self.spec), rank, self._stop)
            return AllToAllDispatcher(group, self.spec)

        self._shards = [Worker(lambda r=rank: join(r)) for rank in range(self.spec.num_shards)]
        self._starts = [lambda r=rank: join(r) for rank in range(self.spec.num_shards, world_size)]
