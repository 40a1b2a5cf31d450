"""Direct links when shards die, stall or answer nonsense: nothing is lost or added twice, and bits stay the same."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moonshard.errors import PeerLost, TransportTimeout
from moonshard.transport.contract import ExpertBatch, WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint, LinkHandle, Patience, Suspicion, Target
from tests.contract.transport_cluster import Worker, compute, expected, make_rows, make_spec, same_bits

pytestmark = pytest.mark.usefixtures("engine")

PATIENT = Patience(reply_s=10.0, failover_s=10.0, hedge_s=0.05)
Answer = Callable[[ExpertBatch, Tensor], Tensor | None]


def rightly(_: ExpertBatch, y_RD: Tensor) -> Tensor | None:
    return y_RD


class Shard:
    """One copy of a shard in a thread of its own. `answer` may change what it says; None says nothing."""

    def __init__(self, spec: WireSpec, shard: int, address: str, answer: Answer = rightly) -> None:
        self.answer = answer
        self.num_batches = 0
        self.took = threading.Event()
        self._endpoint = LinkEndpoint(spec, shard, address)
        self.address = self._endpoint.address
        self._stop = threading.Event()
        self._thread = Worker(self._serve)

    def kill(self) -> None:
        self._stop.set()
        self._thread.result()

    def _serve(self) -> None:
        with closing(self._endpoint) as endpoint:
            while not self._stop.is_set():
                if batch := endpoint.receive(0.01):
                    self.num_batches += 1
                    self._reply(batch)

    def _reply(self, batch: ExpertBatch) -> None:
        rows = (batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK)
        y_RD = self.answer(batch, compute(self._endpoint.shard, batch.layer, *rows))
        self.took.set()
        if y_RD is not None:
            self._endpoint.reply(batch, y_RD)


class Shards:
    """Copies of shards by (shard, replica), on Unix sockets of one directory."""

    def __init__(self, folder: Path, spec: WireSpec, num_replicas: int) -> None:
        self.spec, self.folder = spec, folder
        self.copies: dict[tuple[int, int], Shard] = {}
        self.epoch = 0
        for replica in range(num_replicas):
            for shard in range(spec.num_shards):
                self.start(shard, replica)

    def start(self, shard: int, replica: int = 0, answer: Answer = rightly) -> None:
        address = f"unix:{self.folder}/{shard}-{replica}.sock"
        self.copies[shard, replica] = Shard(self.spec, shard, address, answer)

    def kill(self, shard: int, replica: int = 0) -> None:
        self.copies.pop((shard, replica)).kill()

    def meet(self, patience: Patience = PATIENT) -> LinkDispatcher:
        addresses = [self.copies[shard, 0].address for shard in range(self.spec.num_shards)]
        dispatcher = LinkDispatcher(self.spec, 0, addresses, 5.0, patience)
        self.tell(dispatcher)
        idle_until(dispatcher, has_links(dispatcher, len(self.copies)))
        return dispatcher

    def tell(self, dispatcher: LinkDispatcher) -> None:
        """As the router commits a membership."""
        self.epoch += 1
        targets = [Target(shard, replica, it.address) for (shard, replica), it in self.copies.items()]
        dispatcher.update_members(self.epoch, targets)


def idle_until(dispatcher: LinkDispatcher, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        dispatcher.idle(0.01)


def has_links(dispatcher: LinkDispatcher, num_links: int) -> Callable[[], bool]:
    return lambda: len(list(dispatcher._table)) == num_links


def run_layer(dispatcher: LinkDispatcher, layer: int, rows: Sequence[Tensor]) -> Tensor:
    dispatcher.begin_step(len(rows[0]))
    return dispatcher.combine(dispatcher.dispatch(layer, *rows))


@pytest.fixture
def spec() -> WireSpec:
    return make_spec(num_shards=2, num_experts=24)


@pytest.fixture
def single(tmp_path: Path, spec: WireSpec) -> Iterator[Shards]:
    yield from cleaned(Shards(tmp_path, spec, 1))


@pytest.fixture
def pair(tmp_path: Path, spec: WireSpec) -> Iterator[Shards]:
    yield from cleaned(Shards(tmp_path, spec, 2))


def cleaned(shards: Shards) -> Iterator[Shards]:
    yield shards
    for copy in shards.copies.values():
        copy.kill()


def silent(_: ExpertBatch, y_RD: Tensor) -> Tensor | None:
    return None


def test_rows_wait_for_a_shard_that_is_started_again(single: Shards) -> None:
    rows = make_rows(single.spec, 5)
    with closing(single.meet()) as dispatcher:
        single.copies[1, 0].answer = silent
        dispatcher.begin_step(5)
        combined = Worker(lambda: dispatcher.combine(dispatcher.dispatch(2, *rows)))
        assert single.copies[1, 0].took.wait(5)
        single.kill(1)
        assert combined.is_alive()
        single.start(1)
        assert same_bits(combined.result(), expected(single.spec, 2, rows))
        assert single.copies[0, 0].num_batches == 1, "the shard that answered is not asked again"
        assert dispatcher.recovery.num_redispatches == 1
        assert same_bits(run_layer(dispatcher, 1, rows), expected(single.spec, 1, rows))


def test_native_calls_take_over_again_after_a_recovery(single: Shards) -> None:
    rows = make_rows(single.spec, 2)
    with closing(single.meet()) as dispatcher:
        was_native = dispatcher._courier is not None
        single.kill(0)
        single.start(0)
        assert same_bits(run_layer(dispatcher, 1, rows), expected(single.spec, 1, rows))
        handle = dispatcher.dispatch(2, *rows)
        assert (dispatcher._carried is handle) == was_native
        assert same_bits(dispatcher.combine(handle), expected(single.spec, 2, rows))


def test_a_shard_may_come_back_elsewhere(single: Shards, tmp_path: Path) -> None:
    rows = make_rows(single.spec, 3)
    with closing(single.meet()) as dispatcher:
        single.kill(0)
        combined = Worker(lambda: run_layer(dispatcher, 1, rows))
        single.copies[0, 0] = Shard(single.spec, 0, f"unix:{tmp_path}/moved.sock")
        single.tell(dispatcher)
        assert same_bits(combined.result(), expected(single.spec, 1, rows))


def test_a_link_that_breaks_while_idle_is_opened_again(single: Shards) -> None:
    with closing(single.meet()) as dispatcher:
        single.kill(1)
        idle_until(dispatcher, has_links(dispatcher, 1))
        single.start(1)
        idle_until(dispatcher, has_links(dispatcher, 2))
        rows = make_rows(single.spec, 3)
        assert same_bits(run_layer(dispatcher, 1, rows), expected(single.spec, 1, rows))
        assert dispatcher.recovery.num_redispatches == 0


def test_a_shard_that_stays_away_is_named_after_the_limit(single: Shards) -> None:
    with closing(single.meet(Patience(reply_s=5.0, failover_s=0.3))) as dispatcher:
        single.kill(1)
        started = time.monotonic()
        with pytest.raises(PeerLost, match="shard 1, layer 1, step 0"):
            run_layer(dispatcher, 1, make_rows(single.spec, 4))
        assert 0.25 < time.monotonic() - started < 3


def test_a_worker_that_must_stop_does_not_wait_for_a_shard(single: Shards) -> None:
    with closing(single.meet()) as dispatcher:
        single.kill(1)
        combined = Worker(lambda: run_layer(dispatcher, 1, make_rows(single.spec, 4)))
        dispatcher.give_up("the worker stops")
        with pytest.raises(PeerLost, match=r"shard \d, layer 1, step 0: the worker stops"):
            combined.result()


def test_a_replica_answers_at_once_for_a_shard_that_dies(pair: Shards) -> None:
    rows = make_rows(pair.spec, 5)
    with closing(pair.meet()) as dispatcher:
        pair.copies[1, 0].answer = silent
        dispatcher.begin_step(5)
        combined = Worker(lambda: dispatcher.combine(dispatcher.dispatch(2, *rows)))
        assert pair.copies[1, 0].took.wait(5)
        pair.kill(1)
        assert same_bits(combined.result(), expected(pair.spec, 2, rows))
        pair.start(1)
        idle_until(dispatcher, has_links(dispatcher, 4))
        pair.kill(1, 1)
        assert same_bits(run_layer(dispatcher, 3, rows), expected(pair.spec, 3, rows))


def test_rows_of_a_slow_shard_also_go_to_its_replica_and_are_added_once(pair: Shards) -> None:
    rows, release = make_rows(pair.spec, 5), threading.Event()

    def late(_: ExpertBatch, y_RD: Tensor) -> Tensor:
        release.wait(5)
        return y_RD

    with closing(pair.meet()) as dispatcher:
        pair.copies[0, 0].answer = late
        started = time.monotonic()
        assert same_bits(run_layer(dispatcher, 1, rows), expected(pair.spec, 1, rows))
        assert time.monotonic() - started < 2
        assert dispatcher.recovery.num_hedges == 1
        num_before = pair.copies[0, 0].num_batches
        assert same_bits(run_layer(dispatcher, 2, rows), expected(pair.spec, 2, rows))
        assert pair.copies[0, 0].num_batches == num_before, "the replica stays in use"
        release.set()
        idle_until(dispatcher, lambda: not any(link.pending for link in dispatcher._table))
        assert same_bits(run_layer(dispatcher, 3, rows), expected(pair.spec, 3, rows))


def test_a_silent_shard_without_a_replica_is_dialled_again(single: Shards) -> None:
    rows = make_rows(single.spec, 5)
    with closing(single.meet(Patience(reply_s=0.2, failover_s=5.0))) as dispatcher:
        single.copies[0, 0].answer = silent
        told: list[Suspicion] = []
        dispatcher.recovery.tell = told.append
        combined = Worker(lambda: run_layer(dispatcher, 1, rows))
        assert single.copies[0, 0].took.wait(5)
        single.copies[0, 0].answer = rightly
        assert same_bits(combined.result(), expected(single.spec, 1, rows))
        assert [(it.shard, it.is_wrong) for it in told] == [(0, False)]


def test_without_recovery_silence_fails_as_before(single: Shards) -> None:
    with closing(single.meet(Patience(reply_s=0.2))) as dispatcher:
        single.copies[0, 0].answer = silent
        with pytest.raises(TransportTimeout, match=r"no reply within 0\.2 s"):
            run_layer(dispatcher, 1, make_rows(single.spec, 2))


def test_sums_that_are_not_finite_are_asked_for_elsewhere(pair: Shards) -> None:
    rows = make_rows(pair.spec, 5)
    with closing(pair.meet()) as dispatcher:
        told: list[Suspicion] = []
        dispatcher.recovery.tell = told.append
        pair.copies[1, 0].answer = lambda _, y_RD: torch.full_like(y_RD, float("nan"))
        assert same_bits(run_layer(dispatcher, 2, rows), expected(pair.spec, 2, rows))
        assert [(it.shard, it.replica, it.is_wrong) for it in told] == [(1, 0, True)]
        assert "shard 1, layer 2, step 0: sums of finite rows are not finite" in told[0].reason


def test_sums_that_two_computations_find_infinite_are_the_models(pair: Shards) -> None:
    rows = make_rows(pair.spec, 2)
    with closing(pair.meet()) as dispatcher:
        for copy in pair.copies.values():
            copy.answer = lambda _, y_RD: torch.full_like(y_RD, float("inf"))
        assert not run_layer(dispatcher, 2, rows).isfinite().any()
        assert dispatcher.recovery.trusts_everyone


def test_a_lone_shard_that_lies_is_not_believed_until_another_process_says_the_same(single: Shards) -> None:
    rows = make_rows(single.spec, 2)
    with closing(single.meet()) as dispatcher:
        lies = threading.Event()

        def lie(_: ExpertBatch, y_RD: Tensor) -> Tensor:
            lies.set() if single.copies[1, 0].num_batches > 1 else None
            return torch.full_like(y_RD, float("nan"))

        single.copies[1, 0].answer = lie
        combined = Worker(lambda: run_layer(dispatcher, 2, rows))
        assert lies.wait(5)
        assert combined.is_alive()
        single.kill(1)
        single.start(1)
        assert same_bits(combined.result(), expected(single.spec, 2, rows))
        assert not dispatcher.recovery.trusts_everyone


def test_rows_that_are_not_finite_accuse_nobody(pair: Shards) -> None:
    x_TD, ids_TK, weights_TK = make_rows(pair.spec, 2)
    x_TD[0, 0] = float("nan")
    with closing(pair.meet()) as dispatcher:
        assert not run_layer(dispatcher, 1, (x_TD, ids_TK, weights_TK)).isfinite().all()
        assert dispatcher.recovery.num_suspicions == 0


def test_a_copy_that_the_router_has_struck_off_gets_no_more_rows(pair: Shards) -> None:
    rows = make_rows(pair.spec, 4)
    with closing(pair.meet()) as dispatcher:
        struck = pair.copies.pop((0, 0))
        pair.tell(dispatcher)
        idle_until(dispatcher, has_links(dispatcher, 3))
        assert same_bits(run_layer(dispatcher, 1, rows), expected(pair.spec, 1, rows))
        assert struck.num_batches == 0
        struck.kill()


def test_an_older_membership_changes_nothing(pair: Shards) -> None:
    with closing(pair.meet()) as dispatcher:
        dispatcher.update_members(pair.epoch, [])
        dispatcher.update_members(pair.epoch - 1, [Target(0, 0, "unix:/nowhere")])
        dispatcher.idle(0.01)
        assert len(list(dispatcher._table)) == 4


def test_shards_that_keep_dying_change_no_bit(pair: Shards) -> None:
    rows = make_rows(pair.spec, 7)
    with closing(pair.meet()) as dispatcher:
        over = threading.Event()

        def murder() -> None:
            for turn in range(12):
                victim = turn % 2, turn // 2 % 2
                pair.kill(*victim)
                pair.start(*victim)
            over.set()

        murderer = Worker(murder)
        layer = 0
        while not over.is_set():
            layer = layer % 3 + 1
            assert same_bits(run_layer(dispatcher, layer, rows), expected(pair.spec, layer, rows))
        murderer.result()
        totals = dispatcher.stats
        assert len(totals.sent_bytes) == 2


def test_a_handle_in_flight_is_not_disturbed_by_news(single: Shards) -> None:
    rows = make_rows(single.spec, 3)
    with closing(single.meet()) as dispatcher:
        dispatcher.begin_step(3)
        handle: LinkHandle = dispatcher.dispatch(1, *rows)
        single.tell(dispatcher)
        dispatcher.idle(0.01)
        assert same_bits(dispatcher.combine(handle), expected(single.spec, 1, rows))
