"""The `moonshard` command against a running cell, as a user types it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from moonshard.model.reference import Reference
from moonshard_cluster.client import Client
from moonshard_cluster.local.supervisor import LocalCluster
from tests.integration.cells import moonshard


def succeed(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    done = moonshard(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done


def test_status_shows_ten_processes_eight_shards_and_every_expert_once(
    shared_cell: tuple[LocalCluster, Client],
) -> None:
    router = shared_cell[0].router_address
    text = succeed("status", "--router", router).stdout
    rows = [line.split()[0] for line in text.splitlines() if re.match(r"(router|attention-|expert-)", line)]
    assert rows == ["router", "attention-0", *(f"expert-{shard}" for shard in range(8))]
    assert "10 processes, 1 attention, 8/8 shards over links" in text
    assert "coverage: 384/384 experts, copies of each: 1" in text
    assert all(f"{48 * shard}..{48 * shard + 47}" in text for shard in range(8))


def test_status_as_json_names_live_processes(shared_cell: tuple[LocalCluster, Client]) -> None:
    found = json.loads(succeed("status", "--json", "--router", shared_cell[0].router_address).stdout)
    assert found["ready"] is True
    pids = {worker["pid"] for worker in found["workers"]}
    assert len(pids) == 10
    assert all(psutil.pid_exists(pid) for pid in pids)
    ranges = sorted((w["first_expert"], w["end_expert"]) for w in found["workers"] if w["role"] == "ROLE_EXPERT")
    assert ranges == [(48 * shard, 48 * shard + 48) for shard in range(8)]


def test_the_router_process_has_no_torch(shared_cell: tuple[LocalCluster, Client]) -> None:
    found = shared_cell[1].status()
    mapped = {w.role: {Path(m.path).name for m in psutil.Process(w.pid).memory_maps()} for w in found.workers}
    assert not any(name.startswith("libtorch") for name in mapped[1])
    assert any(name.startswith("libtorch") for name in mapped[3])


def test_generate_gives_the_references_tokens(shared_cell: tuple[LocalCluster, Client], tiny_checkpoint: Path) -> None:
    from moonshard.tokenizer import load_tokenizer

    prompt, count = "The tea is", 6
    flags = ["--temperature", "0", "--max-tokens", str(count), "--router", shared_cell[0].router_address]
    ids = [int(token) for token in succeed("generate", prompt, "--ids", *flags).stdout.split()]
    tokenizer = load_tokenizer(tiny_checkpoint)
    assert ids == Reference.load(tiny_checkpoint).greedy(tokenizer.encode(prompt, allow_special=False), count)
    done = succeed("generate", prompt, *flags)
    assert done.stdout.rstrip("\n") == tokenizer.decode(ids).rstrip("\n")
    assert re.search(rf"\[\d+ \+ {count} tokens, first after [\d.]+ s.*length\]", done.stderr)


def test_chat_answers_one_question_and_a_conversation(shared_cell: tuple[LocalCluster, Client]) -> None:
    flags = ["--max-tokens", "8", "--seed", "1", "--router", shared_cell[0].router_address]
    once = succeed("chat", "Hello", *flags)
    again = succeed("chat", "Hello", *flags)
    assert once.stdout == again.stdout
    assert once.stdout.strip()
    talk = succeed("chat", *flags, stdin="Hello\nAnd then?\n")
    assert talk.stdout.count("you>") == 3
    assert len(re.findall(r"\+ \d+ tokens, first after", talk.stderr)) == 2


def test_instant_mode_closes_the_reasoning_in_the_prompt(shared_cell: tuple[LocalCluster, Client]) -> None:
    flags = ["--max-tokens", "1", "--router", shared_cell[0].router_address]
    sizes = [
        int(re.findall(r"\[(\d+) \+", succeed("chat", "Hello", mode, *flags).stderr)[0])
        for mode in ("--thinking", "--instant")
    ]
    assert sizes[1] == sizes[0] + 1


def test_inspect_k25_gives_the_published_figures(shared_data: Path) -> None:
    config = str(shared_data / "kimi-k2.5" / "config.json")
    text = succeed("inspect", config).stdout
    assert "1,026,879,376,368" in text
    assert "595.1 GB" in text
    assert text.count("71.3 GB") == 8
    assert "70,272 B a token" in text
    assert "208,550" in text
    names = succeed("inspect", config, "--tensors").stdout.splitlines()
    assert len(names) == len(set(names)) == 208_550
    last = "language_model.model.layers.60.mlp.experts.383.down_proj.weight_packed\tI32\t[7168, 256]"
    assert last in names


def test_inspect_a_checkpoint_agrees_with_its_files(tiny_checkpoint: Path) -> None:
    text = succeed("inspect", str(tiny_checkpoint)).stdout
    index = json.loads((tiny_checkpoint / "model.safetensors.index.json").read_text())
    assert f"{index['metadata']['total_size']:,} B" in text
    assert f"{len(index['weight_map']):,}" in text


@pytest.mark.parametrize("command", ["up", "chat", "generate", "status", "inspect", "demo-model"])
def test_help_is_quick_and_says_what_a_command_does(command: str) -> None:
    text = succeed(command, "--help").stdout
    assert "Usage" in text


def test_demo_model_writes_what_up_serves(tmp_path: Path) -> None:
    checkpoint = tmp_path / "demo"
    succeed("demo-model", str(checkpoint), "--size", "tiny", "--layers", "2", "--seed", "7", "--top-k", "4")
    text = succeed("inspect", str(checkpoint)).stdout
    assert "2, 1 of them MoE" in text
    assert "4 per token" in text
    logs = str(tmp_path / "logs")
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "moonshard_cluster.cli", "up", str(checkpoint), "--prompt", "Hi", "--once"]
    done = subprocess.run(
        [*command, "--port", "0", "--log-dir", logs], capture_output=True, text=True, timeout=90, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "ready after" in done.stderr
    assert re.search(r"\+ \d+ tokens, first after", done.stderr)
