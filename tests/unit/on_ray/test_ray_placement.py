"""What workers ask Ray for, and the program inside an actor."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard_cluster.local.plan import free_port
from moonshard_cluster.on_ray.placement import for_ray, place
from moonshard_cluster.on_ray.worker_host import WorkerHost, local_address


def cell(**values: object) -> CellConfig:
    return CellConfig.build({"checkpoint": Path("/model"), **values})


def test_experts_come_first_and_each_worker_has_a_bundle() -> None:
    workers = place(cell(num_shards=4, num_attention=2), [{"CPU": 16.0}, {"CPU": 16.0}])
    assert [worker.name for worker in workers] == [*(f"expert-{s}" for s in range(4)), "attention-0", "attention-1"]
    assert {worker.bundle["CPU"] for worker in workers} == {1.0}


def test_threads_are_cpus_where_there_are_enough() -> None:
    config = cell(num_shards=2, experts={"num_threads": 4}, attention={"num_threads": 8})
    expert, _, attention = place(config, [{"CPU": 32.0}])
    assert (expert.bundle, attention.bundle) == ({"CPU": 4}, {"CPU": 8})


@given(
    cpus=st.lists(st.floats(0.5, 256), min_size=1, max_size=9), shards=st.integers(1, 48), attention=st.integers(1, 8)
)
def test_what_is_asked_for_fits_when_spread_evenly(cpus: list[float], shards: int, attention: int) -> None:
    workers = place(cell(num_shards=shards, num_attention=attention), [{"CPU": each} for each in cpus])
    per_node = -(-len(workers) // len(cpus))
    largest = max(worker.bundle["CPU"] for worker in workers)
    assert largest * per_node <= min(cpus) + 0.01 * per_node


def test_gpus_are_asked_for_one_by_one_or_refused() -> None:
    config = cell(num_shards=2, device="cuda", transport="all_to_all")
    assert {w.bundle["GPU"] for w in place(config, [{"CPU": 8.0, "GPU": 3.0}])} == {1.0}
    with pytest.raises(ConfigError, match="every worker needs a GPU: 3 of them, the cluster has 2"):
        place(config, [{"CPU": 8.0, "GPU": 2.0}])


def test_an_empty_cluster_is_refused() -> None:
    for nodes in ([], [{"memory": 1.0}]):
        with pytest.raises(ConfigError, match="no node of the cluster offers a CPU"):
            place(cell(), nodes)


def test_a_head_without_cpus_takes_no_worker() -> None:
    assert place(cell(), [{"memory": 1.0}, {"CPU": 16.0}]) == place(cell(), [{"CPU": 16.0}])


def test_workers_that_share_no_machine_listen_where_others_reach_them() -> None:
    config = for_ray(cell())
    assert (config.links, config.network.bind_host) == ("tcp", "0.0.0.0")
    assert (config.router.host, config.metrics.host) == ("0.0.0.0", "0.0.0.0")


def test_the_address_on_the_way_to_a_peer() -> None:
    assert local_address("127.0.0.1:80") == "127.0.0.1"
    assert WorkerHost().meeting_point("127.0.0.1:80").startswith("127.0.0.1:")


def test_the_users_mistake_ends_the_worker_and_not_its_host(tmp_path: Path) -> None:
    host = WorkerHost()
    config = cell(checkpoint=tmp_path, timeouts={"join_s": 1.0})
    assert host.run("expert", 0, config.model_dump_json(), f"127.0.0.1:{free_port()}") == 2
    pid, text = host.read_log(0, 0)
    assert b"config.json" in text
    assert host.read_log(pid, len(text)) == (pid, b"")
    # After a restart the log is another one: what was read before does not count.
    assert host.read_log(pid + 1, len(text)) == (pid, text)


def test_any_other_death_of_the_worker_takes_the_host_along(tiny_checkpoint: Path) -> None:
    """So that Ray restarts both in one way."""
    config = cell(checkpoint=tiny_checkpoint, timeouts={"join_s": 0.5}, links="tcp").model_dump_json()
    program = (
        "import sys; from moonshard_cluster.on_ray.worker_host import WorkerHost;"
        "WorkerHost().run('expert', 0, sys.argv[1], sys.argv[2]); print('alive')"
    )
    command = [sys.executable, "-c", program, config, f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
