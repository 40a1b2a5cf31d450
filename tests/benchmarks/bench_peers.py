"""moonshard beside llama.cpp and vLLM on the same weights, in alternating rounds of one run.

    python -m tests.benchmarks.bench_peers CHECKPOINT --gguf FILE --llama-bin DIR [--vllm PYTHON --bf16 DIR]

CHECKPOINT is an INT4 one, FILE the same weights for llama.cpp (INT4 experts as Q4_0, the rest BF16), DIR of --bf16 the
same dequantised. Two threads on each side. Prints medians and ratios, and writes them to results/DATE-NAME.json.
Quote ratios: the machine may be shared, and a busy minute halves every figure.
"""

import argparse
import asyncio
import csv
import datetime
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moonshard_cluster.bench.serving import measure
from moonshard_cluster.client import Client
from moonshard_cluster.local.plan import plan_cell
from moonshard_cluster.local.progress import wait_ready
from moonshard_cluster.local.supervisor import LocalCluster

BATCHES, PREFILL, NEW_TOKENS, THREADS, LIMIT_S = (1, 8, 32), 512, 32, 2, 900.0
RESULTS = Path(__file__).parent / "results"
Figures = dict[str, list[float]]

# Runs in the other project's interpreter: one line of JSON on standard output.
VLLM = """
import json, os, sys, time
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="0-1", HF_HUB_OFFLINE="1")
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    engine = LLM(model=sys.argv[1], max_model_len=2048, max_num_seqs=32, enable_prefix_caching=False, seed=0)
    def run(batch, prompt, new, salt):
        ids = [[(7 * i + 13 * j + salt) % 7000 + 2 for j in range(prompt)] for i in range(batch)]
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        started = time.time()
        engine.generate([dict(prompt_token_ids=x) for x in ids], params, use_tqdm=False)
        return time.time() - started
    run(1, 16, 4, 0)
    found = {}
    for salt in range(int(sys.argv[2])):
        found.setdefault("prefill 512", []).append(512 / run(1, 512, 1, salt))
        for batch in (1, 8, 32):
            first, whole = run(batch, 32, 1, salt), run(batch, 32, 33, salt)
            found.setdefault(f"decode b{batch}", []).append(batch * 32 / (whole - first))
    print("FIGURES " + json.dumps(found))
"""


def llama_round(binaries: Path, gguf: Path, figures: Figures) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(binaries)}

    def run(tool: str, *arguments: str) -> str:
        command = [str(binaries / tool), "-m", str(gguf), "-t", str(THREADS), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True
        ).stdout

    # Its single-stream tool is faster at one stream than its batched one: the better figure counts.
    single = run("llama-bench", "-p", str(PREFILL), "-n", str(NEW_TOKENS), "-r", "1", "-o", "csv")
    for row in csv.DictReader(io.StringIO(single)):
        figures[f"prefill {PREFILL}" if row["n_gen"] == "0" else "decode b1"].append(float(row["avg_ts"]))
    sizes = ",".join(str(batch) for batch in BATCHES if batch > 1)
    arguments = ["-tb", str(THREADS), "-c", "8192", "-npp", "32", "-ntg", str(NEW_TOKENS), "-npl", sizes]
    for line in run("llama-batched-bench", *arguments).splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 9 and cells[1].isdigit():
            figures[f"decode b{cells[3]}"].append(float(cells[8]))


@contextmanager
def cell(checkpoint: Path, dtype: str | None) -> Iterator[str]:
    values = {
        "checkpoint": checkpoint,
        "router": {"port": 0},
        "dtype": dtype,
        "attention": {"num_threads": THREADS, "prefill_chunk": PREFILL, "max_step_tokens": PREFILL + max(BATCHES)},
    }
    with tempfile.TemporaryDirectory() as logs, LocalCluster(plan_cell(values), Path(logs)) as cluster:
        cluster.start()
        with Client(cluster.router_address) as client:
            wait_ready(cluster, client)
        yield cluster.router_address


def own_round(address: str, figures: Figures) -> None:
    for speed in asyncio.run(measure(address, PREFILL, BATCHES, NEW_TOKENS + 1, 1, LIMIT_S)):
        figures[speed.name].append(speed.median)


def vllm_rounds(python: Path, checkpoint: Path, rounds: int) -> Figures:
    """Its own process, after the others: it cannot be kept loaded beside them without taking their memory."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(VLLM)
        script.flush()
        command = [str(python), script.name, str(checkpoint), str(rounds)]
        # As its own documentation asks on CPUs; without them it is about a tenth slower.
        preload = ":".join(map(str, [*python.parent.parent.glob("lib/libiomp5.so"), *_tcmalloc()]))
        environment = {**os.environ, "LD_PRELOAD": preload}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES "))
    found: Figures = json.loads(line.removeprefix("FIGURES "))
    return found


def _tcmalloc() -> list[Path]:
    return sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so*"))[:1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--llama-bin", type=Path)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--bf16", type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, Figures] = {"moonshard": defaultdict(list)}
    for _ in range(options.rounds):
        # Ended before the peer's turn: its spinning threads lose a third when an idle cell's heartbeats interrupt them.
        with cell(options.checkpoint, options.dtype) as address:
            own_round(address, defaultdict(list))  # warm-up
            own_round(address, found["moonshard"])
        if options.llama_bin:
            llama_round(options.llama_bin, options.gguf, found.setdefault("llama.cpp", defaultdict(list)))
    if options.vllm:
        found["vllm"] = vllm_rounds(options.vllm, options.bf16, options.rounds)
    report(options.checkpoint.name, found)


def report(name: str, found: dict[str, Figures]) -> None:
    medians = {engine: {k: statistics.median(v) for k, v in figures.items()} for engine, figures in found.items()}
    own = medians["moonshard"]
    for key, value in own.items():
        others = [f"{e} {m[key]:.1f} ({value / m[key]:.2f}x)" for e, m in medians.items() if e != "moonshard"]
        sys.stdout.write(f"{name:12} {key:12} moonshard {value:8.1f}  {'  '.join(others)}\n")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.datetime.now(tz=datetime.UTC).date()}-{name}.json"
    path.write_text(json.dumps({"checkpoint": name, "threads": THREADS, "tokens/s": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
