"""What a cell's processes hold while faults come and go, and whether it grows. Sampling at the edge, judging pure."""

import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from moonshard.errors import Unavailable
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.client import Client

# A process may hold so much more at the end than at the beginning: allocators and caches fill up, links come and go.
MEMORY_PART, MEMORY_BYTES, DESCRIPTORS = 0.10, 16 << 20, 8
SAMPLES_MIN = 8


@dataclass(frozen=True, slots=True)
class Holding:
    """Of one process at one moment."""

    resident_bytes: int
    num_descriptors: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Medians of the first and the last quarter of the samples of all processes that bore a name."""

    name: str
    first: Holding
    last: Holding

    @property
    def is_flat(self) -> bool:
        limit = self.first.resident_bytes * (1 + MEMORY_PART) + MEMORY_BYTES
        return (
            self.last.resident_bytes <= limit and self.last.num_descriptors <= self.first.num_descriptors + DESCRIPTORS
        )

    def __str__(self) -> str:
        first, last = self.first, self.last
        memory = f"{first.resident_bytes / 1e6:.0f} to {last.resident_bytes / 1e6:.0f} MB"
        return f"{self.name}: {memory}, {first.num_descriptors} to {last.num_descriptors} descriptors"


def growth(name: str, samples: Sequence[Holding]) -> Growth | None:
    """None for too few samples to tell."""
    if len(samples) < SAMPLES_MIN:
        return None
    quarter = len(samples) // 4
    return Growth(name, _median(samples[:quarter]), _median(samples[-quarter:]))


def _median(samples: Sequence[Holding]) -> Holding:
    return Holding(
        int(statistics.median(it.resident_bytes for it in samples)),
        int(statistics.median(it.num_descriptors for it in samples)),
    )


def members(status: pb.GetStatusResponse) -> dict[str, int]:
    """Process ids by name: of the router, its launcher, and the workers that are ready."""
    roles = {pb.ROLE_ATTENTION: "attention", pb.ROLE_EXPERT: "expert"}
    found = {
        f"{roles[it.role]}-{it.rank}": it.pid
        for it in status.workers
        if it.role in roles and it.state == pb.WORKER_STATE_READY
    }
    router = next(it.pid for it in status.workers if it.role == pb.ROLE_ROUTER)
    with suppress(psutil.Error):
        if launcher := psutil.Process(router).parent():
            found["launcher"] = launcher.pid
    return {"router": router, **found}


def hold(pid: int) -> Holding | None:
    """None for a process that has gone."""
    try:
        process = psutil.Process(pid)
        return Holding(process.memory_info().rss, process.num_fds())
    except psutil.Error:
        return None


@contextmanager
def sampled(client: Client, every_s: float) -> Iterator[Callable[[], Mapping[str, Sequence[Holding]]]]:
    """Look at every process of the cell, in a thread; the samples by name, oldest first, once the block is left."""
    samples: defaultdict[str, list[Holding]] = defaultdict(list)
    over = threading.Event()

    def look() -> None:
        while not over.wait(every_s):
            with suppress(Unavailable):
                for name, pid in members(client.status()).items():
                    if holding := hold(pid):
                        samples[name].append(holding)

    thread = threading.Thread(target=look, name="resources", daemon=True)
    thread.start()
    try:
        yield lambda: samples
    finally:
        over.set()
        thread.join()
