"""What `moonshard plan --ray` shows: the bundles that `moonshard up --ray` would ask for."""

import dataclasses
from pathlib import Path

import pytest

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard_cluster.on_ray.placement import place
from moonshard_cluster.plan.layout import Layout
from moonshard_cluster.plan.machines import KNOWN
from moonshard_cluster.plan.ray_bundles import ray_plan, read_nodes
from tests.integration.cells import moonshard

HOST, CARD = KNOWN["cpu-2s"], KNOWN["h100"]
TWO_OF_EACH = Layout(8, 2, 3, HOST, HOST)
MODEL = Path("/model")


def test_nodes_are_read_as_they_are_written() -> None:
    assert read_nodes(["2xCPU=16", "CPU=8,GPU=1.5"]) == [{"CPU": 16.0}, {"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.5}]


@pytest.mark.parametrize("text", ["", "8", "8x", "0xCPU=4", "CPU", "CPU=-1", "CPU=4;GPU=1", "2xCPU=4,"])
def test_what_is_no_node_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match="must be nodes such as") as raised:
        read_nodes([text])
    assert repr(text) in str(raised.value)


def test_experts_come_first_and_every_worker_has_an_even_share() -> None:
    found = ray_plan(TWO_OF_EACH, MODEL, read_nodes(["10xCPU=32"]))
    assert [w.name for w in found.workers] == [f"expert-{s}" for s in range(16)] + [f"attention-{a}" for a in range(3)]
    assert (found.num_nodes, found.per_node) == (10, 2)
    assert {w.bundle["CPU"] for w in found.workers} == {16}


def test_the_flags_lead_to_the_same_bundles() -> None:
    nodes = read_nodes(["4xCPU=48", "CPU=20", "GPU=1"])
    found = ray_plan(TWO_OF_EACH, MODEL, nodes)
    flags = dict(zip(found.flags.split()[::2], map(int, found.flags.split()[1::2]), strict=True))
    config = CellConfig.build(
        {
            "checkpoint": MODEL,
            "num_shards": flags["--shards"],
            "num_replicas": flags["--replicas"],
            "num_attention": flags["--attention"],
            "experts": {"num_threads": flags["--expert-threads"]},
            "attention": {"num_threads": flags["--attention-threads"]},
        }
    )
    assert list(found.workers) == place(config, nodes)
    assert found.num_nodes == 5


def test_gpus_are_reserved_one_by_one() -> None:
    layout = dataclasses.replace(TWO_OF_EACH, num_copies=1, expert_machine=CARD, attention_machine=CARD)
    found = ray_plan(layout, MODEL, read_nodes(["2xCPU=32,GPU=8"]))
    assert {w.bundle["GPU"] for w in found.workers} == {1.0}
    assert "all_to_all" in found.flags
    with pytest.raises(ConfigError, match="every worker needs a GPU: 11 of them, the cluster has 8"):
        ray_plan(layout, MODEL, read_nodes(["CPU=32,GPU=8"]))


def test_copies_of_shards_on_gpus_have_no_transport_yet() -> None:
    with pytest.raises(ConfigError, match=r"num_replicas.*must be 1 with all_to_all"):
        ray_plan(dataclasses.replace(TWO_OF_EACH, expert_machine=CARD), MODEL, read_nodes(["20xCPU=4,GPU=1"]))


def test_as_a_user_sees_it(shared_data: Path) -> None:
    model = str(shared_data / "kimi-k2.5" / "config.json")
    done = moonshard("plan", model, "--experts", "cpu-2s", "--ray", "9xCPU=64")
    assert done.returncode == 0, done.stderr
    for expected in ("over 9 nodes", "expert", "0..15", "moonshard up CHECKPOINT --ray HOST:PORT"):
        assert expected in done.stdout
    refused = moonshard("plan", model, "--ray", "nine")
    assert refused.returncode == 2
    assert "'nine'" in refused.stderr
