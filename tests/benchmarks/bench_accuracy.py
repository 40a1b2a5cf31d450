"""Error of each activation precision against exact W4A16, and llama.cpp's on the same weights.

    python -m tests.benchmarks.bench_accuracy CHECKPOINT [--llama-server FILE --gguf FILE] [--json FILE]

Exact is the FP32 reference over dequantised weights. For each precision: the error of the log-probabilities of the five
likeliest next tokens after prompts of different lengths, and how long greedy continuations agree with the reference's.
Use a calm checkpoint; plain random weights route chaotically, and then no two engines agree for long.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.kernels import Precision
from moonshard.kernels.attention import Activations
from moonshard.model.reference import Reference
from moonshard.sampling import SamplingParams
from moonshard_cluster.local.plan import free_port
from tests.benchmarks.native_engine import native_engine

NUM_PROMPTS, NEW_TOKENS, TOP = 64, 32, 5
MODES: dict[str, tuple[Activations, Precision]] = {
    "bfloat16, int8 experts (default)": ("bfloat16", "int8"),
    "float32, int8 experts": ("float32", "int8"),
    "float32, exact experts": ("float32", "exact"),
}
Logprobs = Callable[[list[int]], dict[int, float]]
Greedy = Callable[[list[int]], list[int]]


def prompts(vocab_size: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(2, vocab_size, (2 * i + 1,), generator=draw).tolist() for i in range(NUM_PROMPTS)]


def native(path: Path, activations: Activations, precision: Precision) -> tuple[Logprobs, Greedy]:
    """The cell's own decoder and experts, in this process."""
    engine = native_engine(path, activations, precision, torch.float32, AttentionConfig(num_blocks=64), num_threads=2)

    def start(prompt: list[int], max_tokens: int) -> None:
        engine.admit([Sequence("a", prompt, SamplingParams(temperature=0, max_tokens=max_tokens))])

    def logprobs(prompt: list[int]) -> dict[int, float]:
        start(prompt, 1)
        logits = engine.runner.run(engine.plan())[0]
        engine.abort(["a"])
        return dict(enumerate(logits.log_softmax(-1).tolist()))

    def greedy(prompt: list[int]) -> list[int]:
        start(prompt, NEW_TOKENS)
        found: list[int] = []
        while (plan := engine.plan()).num_tokens:
            found += [output.token for output in engine.step(plan) if output.token is not None]
        return found

    return logprobs, greedy


@contextmanager
def llama(server: Path, gguf: Path) -> Iterator[tuple[Logprobs, Greedy]]:
    url = f"127.0.0.1:{free_port()}"
    host, port = url.split(":")
    command = [str(server), "-m", str(gguf), "--host", host, "--port", port, "-t", "2", "-c", "2048", "--no-warmup"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(server.parent)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **quiet) as process:  # type: ignore[call-overload]
        try:
            _await_health(f"http://{url}/health")

            def ask(prompt: list[int], count: int, **more: Any) -> Any:
                body = {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False, **more}
                request = urllib.request.Request(
                    f"http://{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=120) as response:
                    return json.load(response)

            def logprobs(prompt: list[int]) -> dict[int, float]:
                top = ask(prompt, 1, n_probs=4 * TOP)["completion_probabilities"][0]["top_logprobs"]
                return {entry["id"]: entry["logprob"] for entry in top}

            def greedy(prompt: list[int]) -> list[int]:
                tokens: list[int] = ask(prompt, NEW_TOKENS, return_tokens=True, ignore_eos=True)["tokens"]
                return tokens

            yield logprobs, greedy
        finally:
            process.kill()


def _await_health(url: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"{url} did not answer within {limit_s:g} s")


def compare(
    exact: list[dict[int, float]],
    texts: list[list[int]],
    all_prompts: list[list[int]],
    subject: tuple[Logprobs, Greedy],
) -> dict[str, float]:
    """Errors over the reference's five likeliest tokens (those that the subject reports), and agreement of texts."""
    logprobs, greedy = subject
    errors = []
    for prompt, truth in zip(all_prompts, exact, strict=True):
        told = logprobs(prompt)
        errors += [abs(told[token] - value) for token, value in truth.items() if token in told]
    agreed = [_agreement(greedy(prompt), text) for prompt, text in zip(all_prompts, texts, strict=True)]
    return {
        "logprob error, median": round(statistics.median(errors), 5),
        "logprob error, largest": round(max(errors), 5),
        "greedy tokens agreed": round(statistics.mean(agreed) / NEW_TOKENS, 3),
        "texts identical": round(sum(a == NEW_TOKENS for a in agreed) / len(agreed), 3),
    }


def _agreement(found: list[int], expected: list[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reference = Reference.load(options.checkpoint)
    asked = prompts(reference.config.vocab_size)
    exact = []
    for prompt in asked:
        top = reference.logits(prompt)[-1].log_softmax(-1).topk(TOP)
        exact.append(dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
    texts = [reference.greedy(prompt, NEW_TOKENS) for prompt in asked]
    found = {name: compare(exact, texts, asked, native(options.checkpoint, *mode)) for name, mode in MODES.items()}
    if options.llama_server:
        with llama(options.llama_server, options.gguf) as subject:
            found["llama.cpp"] = compare(exact, texts, asked, subject)
    for name, figures in found.items():
        sys.stdout.write(f"{name:34} " + "  ".join(f"{k} {v}" for k, v in figures.items()) + "\n")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
