"""The committed placement: checked when it changes, and what is covered while shards are missing."""

import pytest

from moonshard.errors import ConfigError
from moonshard.placed import Placement, coverage_of
from moonshard.topology import Coverage

BLOCKS = Placement.blocks(4, 2, (1, 5))


def test_the_start() -> None:
    assert BLOCKS.layers == (((0, 1), (2, 3)),) * 2
    assert (BLOCKS.generation, BLOCKS.is_contiguous, BLOCKS.num_extra) == (0, True, 0)


def test_a_change_keeps_the_other_layers() -> None:
    changed = BLOCKS.changed(3, {5: ((1, 0, 2), (2, 3))})
    assert changed.layers == (((0, 1), (2, 3)), ((0, 1, 2), (2, 3)))
    assert (changed.generation, changed.is_contiguous, changed.num_extra) == (3, False, 1)
    assert changed.of_layer(5) == ((0, 1, 2), (2, 3))


@pytest.mark.parametrize(
    ("layer", "held", "problem"),
    [
        (2, ((0, 1), (2, 3)), "placement.layer: must be an MoE layer in 1..5, got 2"),
        (1, ((0, 1, 2, 3),), "placement: layer 1 must name 2 shards, got 1"),
        (1, ((0, 1, 1), (2, 3)), "placement: layer 1: shard 0 holds expert 1 twice"),
        (1, ((0, 1), (2, 3, 4)), "placement: layer 1: experts are 0..3, got 4"),
        (1, ((0, 1), (3,)), "placement: layer 1: expert 2 has no copy"),
    ],
)
def test_what_is_refused(layer: int, held: tuple[tuple[int, ...], ...], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BLOCKS.changed(1, {layer: held})
    assert str(caught.value) == problem


def test_coverage_counts_redundant_copies() -> None:
    copied = BLOCKS.changed(1, {1: ((0, 1, 2), (1, 2, 3)), 5: ((0, 1), (1, 2, 3))})
    assert coverage_of(copied, (1, 1)) == Coverage(4, 4, 1, 2)
    assert coverage_of(copied, (2, 1)) == Coverage(4, 4, 1, 3)
    assert coverage_of(copied, (0, 1)) == Coverage(4, 3, 0, 1)  # expert 0 is gone, the others have copies everywhere
    assert coverage_of(copied, (0, 0)) == Coverage(4, 0, 0, 0)
