"""Direct links that go on without a lost shard where they may: masked, renormalised, and told row by row."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moonshard.errors import PeerLost
from moonshard.transport.contract import WireSpec
from moonshard.transport.links import LinkDispatcher, Patience
from tests.contract.test_links_failover import Shards, has_links, idle_until, run_layer
from tests.contract.transport_cluster import expected, make_rows, make_spec, same_bits

pytestmark = pytest.mark.usefixtures("engine")

ALLOWED = Patience(reply_s=10.0, failover_s=10.0, degrade_s=0.02)
LOST = 1
Rows = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def spec() -> WireSpec:
    return make_spec()


@pytest.fixture
def shards(tmp_path: Path, spec: WireSpec) -> Iterator[Shards]:
    started = Shards(tmp_path, spec, 1)
    yield started
    for key in list(started.copies):
        started.kill(*key)


@pytest.fixture
def dispatcher(shards: Shards) -> Iterator[LinkDispatcher]:
    met = shards.meet(ALLOWED)
    yield met
    met.close()


def without(spec: WireSpec, lost: int, rows: Rows) -> tuple[Tensor, Tensor]:
    """The slow obvious twin: sums with the lost shard's weights at zero and the others raised; which rows lack any."""
    x_TD, ids_TK, weights_TK = rows
    is_lost_TK = torch.isin(ids_TK, torch.tensor(list(spec.experts_of(lost)), dtype=torch.int32))
    kept_TK = weights_TK.masked_fill(is_lost_TK, 0.0)
    scale_T = weights_TK.sum(1) / kept_TK.sum(1)
    y_TD = expected(spec, 2, (x_TD, ids_TK, kept_TK)) * torch.nan_to_num(scale_T, posinf=0.0)[:, None]
    return y_TD, is_lost_TK.any(1)


def test_the_others_weights_are_raised_and_rows_that_lack_nothing_keep_their_bits(
    spec: WireSpec, shards: Shards, dispatcher: LinkDispatcher
) -> None:
    rows = make_rows(spec, 40)
    right_TD = expected(spec, 2, rows)
    assert same_bits(run_layer(dispatcher, 2, rows), right_TD)
    assert dispatcher.degraded.rows == set()
    shards.kill(LOST)
    y_TD = run_layer(dispatcher, 2, rows)
    twin_TD, lacks_T = without(spec, LOST, rows)
    assert 0 < lacks_T.sum() < 40
    assert dispatcher.degraded.rows == set(lacks_T.nonzero().flatten().tolist())
    torch.testing.assert_close(y_TD, twin_TD)
    assert same_bits(y_TD[~lacks_T], right_TD[~lacks_T])
    shards.start(LOST)
    shards.tell(dispatcher)
    idle_until(dispatcher, has_links(dispatcher, spec.num_shards))
    assert same_bits(run_layer(dispatcher, 2, rows), right_TD)
    assert dispatcher.degraded.rows == set()


def test_a_row_without_any_expert_left_gets_nothing(spec: WireSpec, shards: Shards, dispatcher: LinkDispatcher) -> None:
    rows = make_rows(spec, 3, experts=spec.experts_of(LOST))
    shards.kill(LOST)
    assert not run_layer(dispatcher, 2, rows).any()
    assert dispatcher.degraded.rows == {0, 1, 2}


def test_rows_of_all_layers_of_a_step_are_told_together(
    spec: WireSpec, shards: Shards, dispatcher: LinkDispatcher
) -> None:
    shards.kill(LOST)
    lacking, whole = make_rows(spec, 2, experts=spec.experts_of(LOST)), make_rows(spec, 2, experts=spec.experts_of(0))
    dispatcher.begin_step(2)
    for layer, rows in ((1, lacking), (2, whole)):
        dispatcher.combine(dispatcher.dispatch(layer, *rows))
    assert dispatcher.degraded.rows == {0, 1}
    dispatcher.begin_step(2)
    assert dispatcher.degraded.rows == set()


def test_most_of_the_model_is_waited_for(spec: WireSpec, shards: Shards) -> None:
    dispatcher = shards.meet(Patience(reply_s=10.0, failover_s=0.3, degrade_s=0.02))
    for shard in (0, 1, 2):
        shards.kill(shard)
    with pytest.raises(PeerLost):
        run_layer(dispatcher, 2, make_rows(spec, 40))
    dispatcher.close()


def test_who_may_not_go_on_waits(spec: WireSpec, shards: Shards) -> None:
    dispatcher = shards.meet(Patience(reply_s=10.0, failover_s=0.3))
    shards.kill(LOST)
    with pytest.raises(PeerLost):
        run_layer(dispatcher, 2, make_rows(spec, 40))
    dispatcher.close()
