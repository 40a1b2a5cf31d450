"""Random faults for minutes or hours under load, and a verdict that also asks whether anything grew."""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable

from moonshard.errors import ConfigError, Unavailable
from moonshard_cluster.chaos.faults import check_allowed, choose, inject, victims
from moonshard_cluster.chaos.resources import growth, sampled
from moonshard_cluster.chaos.run import Experiment, await_ready
from moonshard_cluster.chaos.streams import run_once, run_until
from moonshard_cluster.chaos.verdict import Report, judge
from moonshard_cluster.client import Client

SAMPLES = 240  # in all, of each process
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_S_MAX = 7 * 86_400.0


def seconds_of(text: str) -> float:
    """ "90s", "30m" or "1.5h". Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    duration_s = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < duration_s <= DURATION_S_MAX:
        raise ConfigError("--soak", f"must be like 90s, 30m or 1.5h, a week at most, got {text!r}")
    return duration_s


def soak(client: Client, experiment: Experiment, duration_s: float, told: Callable[[str], None]) -> Report:
    """As run_experiment, with as many faults as fit. No fault waits for the cell to be whole, only for it to serve.

    Raises Unavailable when the undisturbed run fails or the cell does not serve within recovery_s; ConfigError.
    """
    check_allowed(experiment.faults, client.status())
    await_ready(client, experiment.recovery_s)
    load = experiment.num_streams, experiment.max_tokens, experiment.timeout_s
    told(f"undisturbed: {experiment.num_streams} streams of {experiment.max_tokens} tokens")
    undisturbed = run_once(client, *load)
    if broken := [result.error for result in undisturbed if result.error]:
        raise Unavailable(f"the undisturbed run failed: {broken[0]}")
    over = threading.Event()
    with sampled(client, duration_s / SAMPLES) as samples:
        results = run_until(over, client, *load)
        try:
            done = _disturb(client, experiment, duration_s, told)
        finally:
            over.set()
            disturbed = results()
    await_ready(client, experiment.recovery_s)
    found = [growth(name, seen) for name, seen in sorted(samples().items())]
    faults = [f"{name} x {n}" for name, n in sorted(done.items())]
    return judge(undisturbed, disturbed, faults, experiment.pause_limit_s, [it for it in found if it])


def _disturb(client: Client, experiment: Experiment, duration_s: float, told: Callable[[str], None]) -> Counter[str]:
    """How often each fault was done."""
    rng, done = random.Random(experiment.seed), Counter[str]()
    started = time.monotonic()
    while (passed_s := time.monotonic() - started) < duration_s:
        fault = rng.choice(list(experiment.faults))
        await_ready(client, experiment.recovery_s)
        if victim := choose(fault, experiment.target, victims(client.status()), rng):
            told(f"{passed_s:.0f} s: {fault.value} {victim.name} (pid {victim.pid})")
            inject(fault, victim, experiment.fault_s)
            done[fault.value] += 1
        time.sleep(experiment.every_s * rng.uniform(0.5, 1.5))
    return done
