"""What the two kernel benchmarks share: the clock, figures beside the machine's limits, and the command line."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moonshard.kernels import available

Row = dict[str, object]


def median_s(run: Callable[[], object], budget_s: float) -> float:
    """Median over as many calls as fit `budget_s`, at least five."""
    run()
    times: list[float] = []
    while len(times) < 5 or sum(times) < budget_s:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def figures(seconds: float, num_bytes: int, operations: int, limits: dict[str, float], peak: str) -> dict[str, float]:
    """limits: bytes per second by "read", operations per second by the name of the peak."""
    return {
        "us": round(seconds * 1e6, 1),
        "GB/s": round(num_bytes / seconds / 1e9, 1),
        "memory %": round(100 * num_bytes / seconds / limits["read"], 1),
        "GFLOP/s": round(operations / seconds / 1e9),
        "peak %": round(100 * operations / seconds / limits[peak], 1),
    }


def new_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    parser.add_argument("--json", type=Path)
    return parser


def print_rows(options: argparse.Namespace, bench: Callable[[int], Iterator[Row]]) -> None:
    """Run `bench` with each number of threads; rows appear as they are measured."""
    if not available():
        sys.exit("the native kernels are not built: run python -m moonshard.kernels")
    rows: list[Row] = []
    for threads in options.threads:
        for row in bench(threads):
            rows.append(row)
            sys.stdout.write("  ".join(f"{key} {value}" for key, value in row.items()) + "\n")
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
