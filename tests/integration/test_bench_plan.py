"""`moonshard bench` describes this machine, and `moonshard plan` reads the description."""

import subprocess
import sys
from pathlib import Path

import pytest

from moonshard import kernels
from tests.integration.cells import moonshard

LIMIT_S = 240


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_a_plan_for_the_machine_that_was_measured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    if not kernels.available():
        pytest.skip("the native kernels are not built: run python -m moonshard.kernels")
    here = tmp_path / "here.toml"
    command = [sys.executable, "-m", "moonshard_cluster.cli", "bench", str(tiny_checkpoint), "--describe", str(here)]
    command += ["--batches", "1", "--prefill", "16", "--new-tokens", "48", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "decode b1" in done.stdout
    planned = moonshard("plan", str(tiny_checkpoint), "--experts", str(here), "--one-machine")
    assert planned.returncode == 0, planned.stderr
    assert "INT4, one here" in planned.stdout
    assert "engine" in planned.stdout
