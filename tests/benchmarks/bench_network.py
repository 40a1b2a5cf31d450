"""Cut and lossy links, again and again, on eight shards: what streams lose, and how long they pause.

    python -m tests.benchmarks.bench_network [--times 10] [--replicas 1] [--streams 16] [--fault cut] [--seconds 10]

As root, on the tiny demo; one shard is behind a network of its own (tests/integration/networks.py).
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec
from tests.integration.network_cells import network_cell, suffer
from tests.integration.networks import why_not

NUM_SHARDS, MAX_TOKENS, LIMIT_S, LOSS = 8, 200, 300.0, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--fault", choices=("cut", "loss"), default="cut")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny"
        write_demo(checkpoint, DemoSpec.tiny())
        for number in range(given.times):
            # With replicas a copy that had a fault is not asked again while the other answers: a fresh cell asks it.
            folder_of_round = Path(folder) / str(number)
            folder_of_round.mkdir()
            with network_cell(checkpoint, folder_of_round, NUM_SHARDS, given.replicas) as cell:
                fault = cell.network.cut if given.fault == "cut" else partial(cell.network.lose, share=LOSS)
                found = suffer(cell, fault, (given.streams, MAX_TOKENS, LIMIT_S), given.seconds)
                print(  # noqa: T201
                    f"{number}: {found.num_streams} streams, {found.num_failed} failed, "
                    f"{found.num_lost + found.num_different} wrong, longest pause {found.longest_pause_s:.2f} s "
                    f"(undisturbed {found.undisturbed_pause_s:.2f}), {found.faults[0]}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
