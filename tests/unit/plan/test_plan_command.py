"""`moonshard plan` as a user sees it."""

import json
from pathlib import Path

from tests.integration.cells import moonshard


def test_k25_on_cards_and_the_published_table(shared_data: Path) -> None:
    done = moonshard("plan", str(shared_data / "kimi-k2.5" / "config.json"), "--experts", "h100")
    assert done.returncode == 0, done.stderr
    for expected in ("8 x 1 on h100: 71.3 GB each", "5.28 of 8 shards", "9.1 MB a token", "FP16 weights, about 2 TB"):
        assert expected in done.stdout


def test_a_small_model_on_this_machine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    machine = tmp_path / "laptop.toml"
    machine.write_text(
        'kind = "cpu"\nmemory_gb = 16\nread_gb_s = 50\nbf16_tflops = 0.3\nexpert_tops = 0.6\nnetwork_gb_s = 5\n'
    )
    done = moonshard("plan", str(tiny_checkpoint), "--experts", str(machine), "--one-machine")
    assert done.returncode == 0, done.stderr
    assert "INT4, one laptop" in done.stdout
    assert "published" not in done.stdout


def test_what_does_not_fit_is_said(shared_data: Path, tmp_path: Path) -> None:
    done = moonshard("plan", str(shared_data / "kimi-k2.5" / "config.json"), "--experts", "cpu-2s", "--one-machine")
    assert done.returncode == 0
    assert "BF16: does not fit: machine: cpu-2s has 691.2 GB for weights" in done.stdout


def test_an_unknown_machine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    done = moonshard("plan", str(tmp_path / "config.json"), "--experts", "h9000")
    assert done.returncode == 2
