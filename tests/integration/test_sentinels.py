"""A bit of a weight flips in a running shard: it is found, told by its place, and the shard is replaced."""

import os
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

from moonshard.process import DAMAGE_SIGNAL
from moonshard_cluster.client import Client
from tests.integration.cells import CommandLineCell, greedy

BACK_S = 20.0


def test_damaged_weights_are_found_and_their_process_replaced(
    up: Callable[..., CommandLineCell], tmp_path: Path
) -> None:
    config = tmp_path / "cell.toml"
    config.write_text("[experts]\nverify_s = 0.5\n")
    cell = up("--shards", "2", "--fault-hooks", "2", "--config", str(config))
    with Client(cell.router_address) as client:
        undisturbed = greedy(client, [40, 50, 60], 20)
        damaged = cell.member("expert-1").pid
        os.kill(damaged, DAMAGE_SIGNAL)
        cell.await_other("expert-1", damaged, BACK_S)
        assert greedy(client, [40, 50, 60], 20) == undisturbed
        address = client.status().workers[0].metrics_address
    flipped = re.search(r"flips a bit of (layer \d+, expert \d+)", (tmp_path / "logs" / "expert-1.log").read_text())
    assert flipped
    assert f"expert-1, shard 1, {flipped[1]}: damaged weights" in (tmp_path / "logs" / "router.log").read_text()
    assert f"{flipped[1]}: weights are not what was loaded" in (tmp_path / "logs" / "router.log").read_text()
    metrics = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
    assert re.search(r"^moonshard_damaged_weights_total\{.*\} 1\.0$", metrics, re.MULTILINE), metrics
