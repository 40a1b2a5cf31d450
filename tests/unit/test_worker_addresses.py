"""Where workers listen, and what they tell others to connect to."""

from pathlib import Path

import pytest

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard.experts.worker import listen_address
from moonshard.transport.links.address import advertised
from moonshard.worker import metrics_port


def cell(**values: object) -> CellConfig:
    return CellConfig.build({"checkpoint": Path("/model"), **values})


def test_links_on_one_machine_are_sockets_in_the_run_directory() -> None:
    assert listen_address(cell(run_dir="/run/cell"), 3, "") == "unix:/run/cell/expert-3.sock"


def test_links_between_machines_listen_where_the_configuration_says() -> None:
    config = cell(links="tcp", network={"bind_host": "0.0.0.0", "link_port": 7070})
    assert listen_address(config, 3, "10.0.0.9") == "tcp:0.0.0.0:7070"
    assert listen_address(cell(links="tcp", network={"bind_host": "::1"}), 0, "") == "tcp:[::1]:0"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_shard_that_nobody_could_reach_says_so(host: str) -> None:
    with pytest.raises(ConfigError, match=r"network.bind_host: .* needs --advertise"):
        listen_address(cell(links="tcp", network={"bind_host": host}), 0, "")


@pytest.mark.parametrize(
    ("bound", "host", "told"),
    [
        ("tcp:0.0.0.0:7070", "10.0.0.9", "tcp:10.0.0.9:7070"),
        ("tcp:[::]:7070", "fd00::9", "tcp:[fd00::9]:7070"),
        ("tcp:127.0.0.1:7070", "", "tcp:127.0.0.1:7070"),
        ("unix:/run/expert-0.sock", "10.0.0.9", "unix:/run/expert-0.sock"),
    ],
)
def test_others_are_told_the_advertised_host(bound: str, host: str, told: str) -> None:
    assert advertised(bound, host) == told


def test_metrics_ports_follow_the_routers_or_are_one_for_all() -> None:
    roles = [("attention", 0), ("attention", 1), ("expert", 0), ("expert", 7)]
    following = cell(num_attention=2, metrics={"base_port": 9000})
    assert [metrics_port(*role, following) for role in roles] == [9001, 9002, 9003, 9010]
    pods = cell(num_attention=2, metrics={"base_port": 9000, "worker_port": 9090})
    assert {metrics_port(*role, pods) for role in roles} == {9090}
    assert {metrics_port(*role, cell()) for role in roles} == {0}
