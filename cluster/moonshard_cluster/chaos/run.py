"""One experiment: an undisturbed run, then the same load with faults, then the verdict."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moonshard.errors import Unavailable
from moonshard_cluster.chaos.faults import Fault, Victim, check_allowed, choose, inject, victims
from moonshard_cluster.chaos.streams import run_once, run_until
from moonshard_cluster.chaos.verdict import Report, judge
from moonshard_cluster.client import Client

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Experiment:
    """faults: drawn from at random. num_faults: how many in all, every_s apart, each fault_s long, none before the cell
    is ready again. pause_limit_s: part of the verdict, None for none."""

    faults: Sequence[Fault]
    target: str = "any"
    num_faults: int = 1
    every_s: float = 5.0
    fault_s: float = 5.0
    num_streams: int = 16
    max_tokens: int = 200
    timeout_s: float = 300.0
    recovery_s: float = 60.0
    pause_limit_s: float | None = None
    seed: int = 0


def run_experiment(client: Client, experiment: Experiment, told: Callable[[str], None]) -> Report:
    """Raises Unavailable when the undisturbed run fails, or the cell is not ready within recovery_s; ConfigError for a
    fault that the cell would not notice."""
    check_allowed(experiment.faults, client.status())
    await_ready(client, experiment.recovery_s)
    told(f"undisturbed: {experiment.num_streams} streams of {experiment.max_tokens} tokens")
    load = experiment.num_streams, experiment.max_tokens, experiment.timeout_s
    undisturbed = run_once(client, *load)
    if broken := [result.error for result in undisturbed if result.error]:
        raise Unavailable(f"the undisturbed run failed: {broken[0]}")
    over = threading.Event()
    results = run_until(over, client, *load)
    try:
        done = disturb(client, experiment, told)
    finally:
        over.set()
        disturbed = results()
    return judge(undisturbed, disturbed, done, experiment.pause_limit_s)


def disturb(client: Client, experiment: Experiment, told: Callable[[str], None]) -> list[str]:
    """Faults one after the other; what was done."""
    rng, done = random.Random(experiment.seed), list[str]()
    for _ in range(experiment.num_faults):
        time.sleep(experiment.every_s)
        fault = rng.choice(list(experiment.faults))
        victim = _await_victim(client, experiment, fault, rng)
        done.append(f"{fault.value} {victim.name}")
        told(f"{done[-1]} (pid {victim.pid})")
        inject(fault, victim, experiment.fault_s)
    await_ready(client, experiment.recovery_s)
    return done


def _await_victim(client: Client, experiment: Experiment, fault: Fault, rng: random.Random) -> Victim:
    await_ready(client, experiment.recovery_s)
    if victim := choose(fault, experiment.target, victims(client.status()), rng):
        return victim
    raise Unavailable(f"nobody to suffer {fault.value!r}: {experiment.target!r} is not there")


def await_ready(client: Client, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not client.status().ready:
        if time.monotonic() > deadline:
            raise Unavailable(f"the cell was not ready within {timeout_s:g} s")
        time.sleep(POLL_S)
