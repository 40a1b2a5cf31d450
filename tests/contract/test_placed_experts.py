"""Experts anywhere, in copies, changing places: the same bits as the local twin with contiguous blocks."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moonshard.errors import ProtocolMismatch
from moonshard.placement import Layer
from moonshard.transport.contract import WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint, Patience
from moonshard.transport.local import LocalDispatcher
from moonshard.transport.routing_table import RoutingTable
from tests.contract.conftest import use_engine
from tests.contract.transport_cluster import TIMEOUT_S, Worker, make_rows, make_spec, same_bits

Rows = tuple[Tensor, Tensor, Tensor]


def outputs(shard: int, layer: int, x_RD: Tensor, ids_RK: Tensor, weights_RK: Tensor) -> Tensor:
    """An output for each id that is not -1: of the expert alone, wherever it is computed."""
    rows_P, slots_P = (ids_RK >= 0).nonzero(as_tuple=True)
    scale_P = weights_RK[rows_P, slots_P] * (ids_RK[rows_P, slots_P] * 0.37 + layer * 0.11)
    return scale_P[:, None] * x_RD[rows_P].float()


@contextmanager
def dispatching(spec: WireSpec, folder: Path, table: RoutingTable | None = None) -> Iterator[LinkDispatcher]:
    """With shards that answer."""
    with shards(spec, folder) as endpoints:
        addresses = [it.address for it in endpoints]
        with closing(LinkDispatcher(spec, 0, addresses, TIMEOUT_S, table=table)) as dispatcher:
            yield dispatcher


@contextmanager
def shards(spec: WireSpec, folder: Path) -> Iterator[list[LinkEndpoint]]:
    stop = threading.Event()

    def serve(endpoint: LinkEndpoint) -> None:
        while not stop.is_set():
            if batch := endpoint.receive(0.05):
                asked = batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK
                endpoint.reply(batch, outputs(endpoint.shard, batch.layer, *asked))

    with ExitStack() as stack:
        endpoints = [
            stack.enter_context(closing(LinkEndpoint(spec, shard, f"unix:{folder}/{shard}.sock", max_rows=400)))
            for shard in range(spec.num_shards)
        ]
        servers = [Worker(lambda it=it: serve(it)) for it in endpoints]
        try:
            yield endpoints
        finally:
            stop.set()
            for server in servers:
                server.result()


def placements(spec: WireSpec, seed: int) -> list[Layer]:
    """Every expert at one to three shards."""
    draw = random.Random(seed)
    layers = []
    for _ in spec.moe_layers:
        held: list[set[int]] = [set() for _ in range(spec.num_shards)]
        for expert in range(spec.num_experts):
            for shard in draw.sample(range(spec.num_shards), draw.randint(1, 3)):
                held[shard].add(expert)
        layers.append(tuple(tuple(sorted(experts)) for experts in held))
    return layers


def twin(spec: WireSpec, layer: int, rows: Rows) -> Tensor:
    it = LocalDispatcher(spec, outputs)
    return it.combine(it.dispatch(layer, *rows))


@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_bit_depends_on_where_experts_are(
    engine: str, row_dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_engine(engine, monkeypatch)
    spec = make_spec(sums="expert", row_dtype=row_dtype)
    steps = [make_rows(spec, num_rows, seed) for seed, num_rows in enumerate([1, 7, 300, 1, 40])]
    with dispatching(spec, tmp_path) as dispatcher:
        for generation, rows in enumerate(steps):
            dispatcher.begin_step(len(rows[0]))
            for layer in spec.moe_layers:
                assert same_bits(dispatcher.combine(dispatcher.dispatch(layer, *rows)), twin(spec, layer, rows))
            dispatcher.update_table(RoutingTable(spec, placements(spec, generation), generation), lambda: None)


def test_both_engines_ask_the_same_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a native call has sent is taken over by Python in mid-flight, so it must have gone where Python thinks."""
    use_engine("native", monkeypatch)
    spec = make_spec(sums="expert")
    table = RoutingTable(spec, placements(spec, 5), 1)
    with dispatching(spec, tmp_path, table) as dispatcher:
        for step in range(8):
            rows = make_rows(spec, 1 + step * 3, step)
            dispatcher.begin_step(len(rows[0]))
            handle = dispatcher.dispatch(2, *rows)
            dispatcher._take_over()
            assert same_bits(dispatcher.combine(handle), twin(spec, 2, rows))


def test_a_table_is_adopted_between_steps_only(tmp_path: Path) -> None:
    spec, adopted = make_spec(sums="expert"), []
    rows = make_rows(spec, 5)
    with dispatching(spec, tmp_path) as dispatcher:
        dispatcher.begin_step(5)
        handle = dispatcher.dispatch(1, *rows)
        for generation in (1, 2):
            table = RoutingTable(spec, placements(spec, generation), generation)
            dispatcher.update_table(table, lambda generation=generation: adopted.append(generation))
        dispatcher.combine(handle)
        dispatcher.dispatch(2, *rows)
        assert adopted == []
        dispatcher.combine(dispatcher.dispatch(2, *rows))
        dispatcher.begin_step(5)
        assert adopted == [1, 2]


def twice(spec: WireSpec) -> list[Layer]:
    """Every expert at its own shard and at the next."""
    shards_of = [(e // 12, (e // 12 + 1) % spec.num_shards) for e in range(spec.num_experts)]
    layer = tuple(tuple(e for e, at in enumerate(shards_of) if shard in at) for shard in range(spec.num_shards))
    return [layer] * len(spec.moe_layers)


@pytest.mark.parametrize("engine", ["native", "python"])
def test_a_lost_shards_rows_go_to_the_other_copies(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a combine, and from the next dispatch on; nobody waits for it."""
    use_engine(engine, monkeypatch)
    spec = make_spec(sums="expert", row_dtype=torch.bfloat16)
    rows, patience = make_rows(spec, 23), Patience(reply_s=TIMEOUT_S, failover_s=2 * TIMEOUT_S)
    stop = threading.Event()
    with ExitStack() as stack:
        endpoints = [LinkEndpoint(spec, shard, f"unix:{tmp_path}/{shard}.sock") for shard in range(spec.num_shards)]
        addresses, table = [it.address for it in endpoints], RoutingTable(spec, twice(spec), 1)
        started = threading.Barrier(2)

        def connect() -> LinkDispatcher:
            started.wait(TIMEOUT_S)
            return LinkDispatcher(spec, 0, addresses, TIMEOUT_S, patience, table)

        def serve(endpoint: LinkEndpoint, ends: threading.Event) -> None:
            with closing(endpoint):
                while not (stop.is_set() or ends.is_set()):
                    if batch := endpoint.receive(0.02):
                        asked = batch.x_RD, batch.topk_ids_RK, batch.topk_weights_RK
                        if endpoint.shard == 1 and ends is dies and batch.layer == 2:
                            return  # with the rows
                        endpoint.reply(batch, outputs(endpoint.shard, batch.layer, *asked))

        dies = threading.Event()
        servers = [Worker(lambda it=it: serve(it, dies if it.shard == 1 else stop)) for it in endpoints]
        connecting = Worker(connect)
        started.wait(TIMEOUT_S)
        dispatcher = stack.enter_context(closing(connecting.result()))
        began = time.monotonic()
        for _ in range(2):
            dispatcher.begin_step(23)
            for layer in spec.moe_layers:
                found = dispatcher.combine(dispatcher.dispatch(layer, *rows))
                assert same_bits(found, twin(spec, layer, rows))
        assert dispatcher.lost_shards == [1]
        assert time.monotonic() - began < TIMEOUT_S
        stop.set()
        for server in servers:
            server.result()


def test_a_table_without_some_shards() -> None:
    spec = make_spec(num_experts=4, num_shards=2, top_k=2, moe_layers=(1,), sums="expert")
    table = RoutingTable(spec, [((0, 1, 2), (1, 3))])
    assert table.without([0]).copies_LE.tolist() == [[1, 1, 1, 1]]
    assert table.without([0]).shards_LEC[0, :, 0].tolist() == [0, 1, 0, 1]
    assert table.without([1]).shards_LEC[0, :, 0].tolist() == [0, 0, 0, 1]
    assert table.copies_LE.tolist() == [[1, 2, 1, 1]]


def test_a_shard_and_a_worker_must_agree_on_sums(tmp_path: Path) -> None:
    with (
        shards(make_spec(sums="expert"), tmp_path) as endpoints,
        pytest.raises(ProtocolMismatch, match="sums: expected 'expert', got 'shard'"),
    ):
        LinkDispatcher(make_spec(), 0, [it.address for it in endpoints], TIMEOUT_S)
