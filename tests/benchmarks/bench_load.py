"""What seeing the experts costs: two cells take turns, one with series per expert that is scraped, one without.

    python -m tests.benchmarks.bench_load [CHECKPOINT] [--rounds 12] [--seconds 4] [--scrape-every 2]

Prints tokens a second and the processor time of attention worker and shards per token, medians over the rounds of the
ratio with to without, and the parts by themselves.
"""

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from moonshard.attention.link_metrics import SECONDS_BUCKETS
from moonshard.exposition import Exposition
from moonshard.kernels.tally import Tally
from moonshard.metrics import Buckets
from moonshard.v1 import control_pb2 as pb
from moonshard_cluster.client import Client
from moonshard_cluster.demo.trained_model import TRAINED
from tests.integration.cells import greedy, running_cell
from tests.integration.prometheus_server import scrape
from tests.unit.experts.test_expert_metrics import k25_shard

STREAMS, NEW_TOKENS = 8, 32
CELLS: dict[str, dict[str, Any]] = {
    "seen": {"per_expert": "full", "load_window_s": 1.0, "load_window_rows": 0},
    "unseen": {"per_expert": "off", "load_window_s": 3600.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--scrape-every", type=float, default=2.0, help="seconds; Prometheus takes 15 to 60")
    given = parser.parse_args()
    checkpoint = given.checkpoint or TRAINED
    for line in parts():
        say(line)
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(running_cell(checkpoint, Path(tempfile.mkdtemp()), metrics=settings))[1]
            for name, settings in CELLS.items()
        }
        compare(clients, given.rounds, given.seconds, given.scrape_every)


def compare(clients: dict[str, Client], rounds: int, seconds: float, every_s: float) -> None:
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
    for number in range(rounds + 1):
        for name in sorted(clients, reverse=bool(number % 2)):
            found = measure(clients[name], seconds, every_s if name == "seen" else None)
            if number:  # the first round warms up
                figures[name].append(found)
    for at, title in enumerate(("tokens a second", "processor ms a token")):
        seen, unseen = ([found[at] for found in figures[name]] for name in ("seen", "unseen"))
        ratio = statistics.median(a / b for a, b in zip(seen, unseen, strict=True))
        say(f"{title}: {statistics.median(seen):.2f} seen, {statistics.median(unseen):.2f} unseen, ratio {ratio:.4f}")


def measure(client: Client, seconds: float, every_s: float | None) -> tuple[float, float]:
    """(tokens a second, processor milliseconds of workers per token)."""
    workers = [worker for worker in client.status().workers if worker.role != pb.ROLE_ROUTER]
    ended = threading.Event()
    scraper = threading.Thread(target=scrape_all, args=([worker.metrics_address for worker in workers], every_s, ended))
    if every_s:
        scraper.start()
    before, started = processor_s(workers), time.monotonic()
    with ThreadPoolExecutor(STREAMS) as pool:
        num_tokens = sum(pool.map(lambda seed: stream(client, seed, started + seconds), range(STREAMS)))
    took_s, used_s = time.monotonic() - started, processor_s(workers) - before
    ended.set()
    if every_s:
        scraper.join()
    return num_tokens / took_s, used_s / num_tokens * 1e3


def stream(client: Client, seed: int, until: float) -> int:
    draw, num_tokens = random.Random(seed), 0
    while time.monotonic() < until:
        num_tokens += len(greedy(client, [draw.randrange(1000) for _ in range(16)], NEW_TOKENS))
    return num_tokens


def scrape_all(addresses: list[str], every_s: float, ended: threading.Event) -> None:
    while not ended.wait(every_s):
        for address in addresses:
            scrape(address)


def processor_s(workers: list[pb.WorkerStatus]) -> float:
    times = [psutil.Process(worker.pid).cpu_times() for worker in workers]
    return sum(it.user + it.system for it in times)


def parts() -> list[str]:
    """Costs of one batch and one call."""
    tally, buckets = Tally(60, 48), Buckets(SECONDS_BUCKETS)
    ids = np.arange(64, dtype=np.int32) % 48
    shard = Exposition(k25_shard("full"))
    return [
        f"scraping all 2,880 series of a K2.5 shard: {per_call_us(shard.text, 50) / 1e3:.1f} ms",
        f"counting a batch of 64 pairs in Python: {per_call_us(lambda: tally.add(0, ids)):.2f} us",
        f"timing one call: {per_call_us(lambda: buckets.observe(0.0003)):.2f} us",
    ]


def per_call_us(call: Callable[[], object], number: int = 20_000) -> float:
    started = time.process_time()
    for _ in range(number):
        call()
    return (time.process_time() - started) / number * 1e6


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
