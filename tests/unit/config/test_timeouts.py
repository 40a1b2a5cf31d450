"""Limits that depend on each other."""

import pytest

from moonshard.config import CellConfig
from moonshard.errors import ConfigError


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (
            {"failover_s": 300},
            r"timeouts.stall_s: .*must exceed combine_s \+ failover_s = 60 \+ 300 seconds, got 180.0",
        ),
        ({"combine_s": 90, "stall_s": 150}, r"must exceed combine_s \+ failover_s = 90 \+ 60 seconds, got 150"),
        ({"combine_s": 0, "stall_s": 1}, r"timeouts.combine_s: .*got 0"),
    ],
)
def test_a_worker_that_waits_for_a_shard_does_not_count_as_hung(limits: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        CellConfig.build({"checkpoint": "x", "timeouts": limits})


def test_limits_that_fit_are_taken() -> None:
    limits = {"combine_s": 5, "failover_s": 0, "stall_s": 6}
    assert CellConfig.build({"checkpoint": "x", "timeouts": limits}).timeouts.stall_s == 6
