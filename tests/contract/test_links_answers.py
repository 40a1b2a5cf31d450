"""A shard that answers without Python gives the same bits and counts the same as one that asks."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from moonshard.experts.counters import LoadCounters
from moonshard.kernels import Int4Experts, Pool
from moonshard.kernels.tally import Tally
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.links import LinkDispatcher, LinkEndpoint, handshake
from moonshard.transport.links.answers import Answers, ExpertTable
from tests.contract.conftest import use_engine
from tests.contract.transport_cluster import Worker, make_rows, make_spec, same_bits

HIDDEN, INNER = 64, 32


def make_experts(spec: WireSpec, pool: Pool) -> dict[int, Int4Experts]:
    generator = torch.Generator().manual_seed(5)
    layers = {}
    for layer in spec.moe_layers:
        layers[layer] = Int4Experts(0, spec.num_experts, HIDDEN, INNER)
        for expert in range(spec.num_experts):
            for name, outputs, inputs in (("gate", INNER, HIDDEN), ("up", INNER, HIDDEN), ("down", HIDDEN, INNER)):
                packed = torch.randint(-(2**31), 2**31, (outputs, inputs // 8), generator=generator).to(torch.int32)
                scale = (torch.rand(outputs, inputs // 32, generator=generator) / 8).to(torch.bfloat16)
                layers[layer].load(pool, expert, name, packed, scale)
    return layers


class Shard:
    """An endpoint served in a thread; `asked` counts the batches that came to Python."""

    def __init__(self, spec: WireSpec, path: Path, answering: bool) -> None:
        self.endpoint = LinkEndpoint(spec, 0, f"unix:{path}")
        self.pool = Pool(1)
        self.experts = make_experts(spec, self.pool)
        self.counters = LoadCounters(spec.moe_layers, spec.experts_of(0))
        self.seen: list[int] = []
        self.asked = 0
        if answering:
            table = ExpertTable(
                self.pool, self.experts, "int8", self.counters.tally, self.counters.experts, self._observe
            )
            assert self.endpoint.answer_with(table)

    def _observe(self, rows: int, compute_s: float) -> None:
        assert 0 < compute_s < 1
        self.seen.append(rows)

    def serve(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if batch := self.endpoint.receive(0.05):
                ids_RK = batch.topk_ids_RK
                y_RD = self.experts[batch.layer].forward(self.pool, batch.x_RD, ids_RK, batch.topk_weights_RK)
                self.counters.add(batch.layer, ids_RK.numpy())
                self.endpoint.reply(batch, y_RD)
                self.asked += 1


@contextmanager
def running(spec: WireSpec, path: Path, answering: bool) -> Iterator[tuple[Shard, LinkDispatcher]]:
    shard, stop = Shard(spec, path, answering), threading.Event()
    server = Worker(lambda: shard.serve(stop))
    with closing(shard.endpoint), closing(LinkDispatcher(spec, 0, [shard.endpoint.address], 10.0)) as dispatcher:
        yield shard, dispatcher
        stop.set()
        server.result()


@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_same_bits_and_counts(tmp_path: Path, row_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine("native", monkeypatch)
    spec = make_spec(num_shards=1, num_experts=12, hidden_size=HIDDEN, row_dtype=row_dtype)
    sizes = [1, 2, 7, 70, 600, 1]
    with (
        running(spec, tmp_path / "a.sock", answering=True) as (one, ours),
        running(spec, tmp_path / "b.sock", answering=False) as (other, theirs),
    ):
        for step, num_rows in enumerate(sizes):
            rows = make_rows(spec, num_rows, seed=step)
            for layer in spec.moe_layers:
                results = []
                for dispatcher in (ours, theirs):
                    dispatcher.begin_step(num_rows)
                    results.append(dispatcher.combine(dispatcher.dispatch(layer, *rows)))
                assert same_bits(*results)
    assert (one.asked, other.asked) == (3, 18), "only 600 rows are too many for an answer without Python"
    assert one.seen == [rows for rows in sizes if rows < 600 for _ in spec.moe_layers]
    for name in ("rows_LE", "active_L", "batches_L", "sizes_B"):
        assert np.array_equal(getattr(one.counters.tally, name), getattr(other.counters.tally, name)), name
    assert not one.counters.tally.scratch_E.any()
    stats, expected = one.endpoint.stats, other.endpoint.stats
    assert (stats.sent_bytes, stats.received_bytes) == (expected.sent_bytes, expected.received_bytes)
    assert (stats.num_dispatches, stats.num_rows) == (expected.num_dispatches, expected.num_rows)
    assert stats.wait_s[0] > 0


def test_answers_to_a_worker_that_reads_nothing_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine("native", monkeypatch)
    spec = make_spec(num_shards=1, num_experts=12, hidden_size=HIDDEN)
    x_TD, ids_TK, weights_TK = make_rows(spec, 250)
    cut: list[int] = []
    last_message = Answers.last_message
    monkeypatch.setattr(Answers, "last_message", lambda *args: cut.append(1) or last_message(*args))
    with running(spec, tmp_path / "a.sock", answering=True) as _, socket.socket(socket.AF_UNIX) as link:
        link.connect(str(tmp_path / "a.sock"))
        link.settimeout(10)
        link.sendall(b"".join(handshake.hello(spec, 1, 0)))
        assert wire.parse_header(link.recv(1 << 16)).kind is wire.Kind.WELCOME
        payload = ids_TK.numpy().tobytes() + weights_TK.numpy().tobytes() + x_TD.numpy().tobytes()
        step, size, messages = 0, wire.HEADER_BYTES + wire.reply_bytes(spec, 250), []
        while not cut:
            assert step < 40, "the socket takes everything"
            link.sendall(wire.pack_header(wire.dispatch_header(spec, 1, step, 1, 250)) + payload)
            time.sleep(0.02)
            step += 1
        replies = link.makefile("rb")
        messages += [replies.read(size) for _ in range(step)]
        link.sendall(wire.pack_header(wire.dispatch_header(spec, 1, step, 1, 250)) + payload)
        messages.append(replies.read(size))
        replies.close()
    assert [wire.parse_header(message).step for message in messages] == list(range(step + 1))
    assert len({message[wire.HEADER_BYTES :] for message in messages}) == 1


def test_without_the_library_nothing_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine("native", monkeypatch)
    spec = make_spec(num_shards=1, num_experts=12, hidden_size=HIDDEN)
    pool = Pool(1)
    table = ExpertTable(pool, make_experts(spec, pool), "int8", Tally(3, 12), range(12), lambda *_: None)
    use_engine("python", monkeypatch)
    with closing(LinkEndpoint(spec, 0, f"unix:{tmp_path}/0.sock")) as endpoint:
        assert not endpoint.answer_with(table)
