"""Faults of processes of this machine, by signals."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from moonshard.errors import ConfigError
from moonshard.process import CORRUPT_SIGNAL, PARTITION_SIGNAL, STALE_SIGNAL
from moonshard.v1 import control_pb2 as pb

SLOW_TURN_S = 0.05


class Fault(Enum):
    """term: asked to end; stop: no instruction for a while; slow: half of the time none. corrupt: a shard's sums are
    NaN; stale: its answers say that they are of another layer; partition: it neither hears nor says anything on its
    links, but does to the router."""

    KILL = "kill"
    TERM = "term"
    STOP = "stop"
    SLOW = "slow"
    CORRUPT = "corrupt"
    STALE = "stale"
    PARTITION = "partition"


SIGNALS = {
    Fault.KILL: signal.SIGKILL,
    Fault.TERM: signal.SIGTERM,
    Fault.CORRUPT: CORRUPT_SIGNAL,
    Fault.STALE: STALE_SIGNAL,
    Fault.PARTITION: PARTITION_SIGNAL,
}
SHARDS_ONLY = (Fault.CORRUPT, Fault.STALE, Fault.PARTITION)


@dataclass(frozen=True, slots=True)
class Victim:
    name: str
    pid: int


def victims(status: pb.GetStatusResponse) -> list[Victim]:
    """The workers that are ready; the router is none, its end is the cell's."""
    roles = {pb.ROLE_ATTENTION: "attention", pb.ROLE_EXPERT: "expert"}
    return [
        Victim(f"{roles[worker.role]}-{worker.rank}", worker.pid)
        for worker in status.workers
        if worker.role in roles and worker.state == pb.WORKER_STATE_READY
    ]


def allowed(status: pb.GetStatusResponse) -> list[Fault]:
    """All that this cell's workers can suffer."""
    return [fault for fault in Fault if status.fault_hooks_s or fault not in SHARDS_ONLY]


def check_allowed(faults: Sequence[Fault], status: pb.GetStatusResponse) -> None:
    """Raises ConfigError for a fault that this cell's shards would pass over: the verdict would be of nothing."""
    for fault in faults:
        if fault in SHARDS_ONLY and not status.fault_hooks_s:
            raise ConfigError("faults", f"{fault.value!r} needs a cell started with --fault-hooks SECONDS")


def choose(fault: Fault, target: str, found: Sequence[Victim], rng: random.Random) -> Victim | None:
    """target: a name, "expert", "attention" or "any". None when nobody of the sort is there now."""
    if fault in SHARDS_ONLY and target.startswith("attention"):
        raise ConfigError("target", f"only shards can suffer {fault.value!r}, got {target!r}")
    role = "expert" if target == "any" and fault in SHARDS_ONLY else target
    fitting = [it for it in found if role in (it.name, it.name.partition("-")[0], "any")]
    return rng.choice(fitting) if fitting else None


def inject(fault: Fault, victim: Victim, seconds: float, wait: Callable[[float], object] = time.sleep) -> None:
    """Returns when the fault is over. A victim that is gone meanwhile is nobody's fault."""
    with suppress(ProcessLookupError):
        if fault is Fault.STOP:
            _pause(victim.pid, seconds, wait)
        elif fault is Fault.SLOW:
            for _ in range(max(1, round(seconds / (2 * SLOW_TURN_S)))):
                _pause(victim.pid, SLOW_TURN_S, wait)
                wait(SLOW_TURN_S)
        else:
            os.kill(victim.pid, SIGNALS[fault])
            if fault in SHARDS_ONLY:
                wait(seconds)


def _pause(pid: int, seconds: float, wait: Callable[[float], object]) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
