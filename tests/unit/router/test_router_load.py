"""The router's book of expert load: windows in, totals and recent growth out; and the call that tells of it."""

from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.config import read_secret
from moonshard.errors import ConfigError, Unauthenticated
from moonshard.router.load import SNAPSHOTS_MAX, LoadBook, ShardWindow
from moonshard.router.operator_key import OperatorKey
from moonshard.v1 import control_pb2 as pb
from tests.unit.router.router_peers import NUM_EXPERTS, ready_cell, run, small_config

LAYERS = (1, 2)


def window(experts: tuple[int, ...], rows: list[int], span_s: float = 5.0) -> ShardWindow:
    return ShardWindow(span_s, LAYERS, experts, rows)


def test_windows_of_two_shards_make_one_matrix() -> None:
    book = LoadBook(4, history_s=900)
    book.add(0, window((0, 1), [1, 2, 3, 4]), 100.0)
    book.add(1, window((2, 3), [5, 6, 7, 8]), 101.0)
    book.add(0, window((0, 1), [10, 0, 0, 0]), 105.0)
    matrix = book.matrix(0, 106.0)
    assert (matrix.layers, matrix.rows, matrix.span_s) == (LAYERS, [11, 2, 5, 6, 3, 4, 7, 8], 10.0)
    assert {rank: shard.rows for rank, shard in matrix.shards.items()} == {0: (13, 7), 1: (11, 15)}


def test_a_window_of_time_tells_only_of_what_ended_in_it() -> None:
    book = LoadBook(2, history_s=900)
    for at_s in range(10, 101, 10):
        book.add(0, window((0, 1), [1, 0, 0, at_s], span_s=10.0), float(at_s))
    recent = book.matrix(20.0, 100.0)
    assert (recent.rows, recent.span_s) == ([2, 0, 0, 190], 20.0)
    assert book.matrix(20.0, 200.0).rows == [0, 0, 0, 0], "nothing was served lately"


def test_a_restarted_shard_goes_on_where_it_was() -> None:
    book = LoadBook(2, history_s=900)
    book.add(0, window((0, 1), [1, 1, 1, 1]), 10.0)
    book.add(0, window((0, 1), [2, 0, 0, 0]), 60.0)
    assert book.matrix(0, 60.0).rows == [3, 1, 1, 1]


def test_copies_of_an_expert_add_up() -> None:
    book = LoadBook(2, history_s=900)
    book.add(0, window((0, 1), [4, 1, 4, 1]), 10.0)
    book.add(1, window((0, 1), [2, 1, 2, 1]), 10.0)
    assert book.matrix(0, 10.0).rows == [6, 2, 6, 2]


def test_balancedness_is_the_mean_by_the_maximum() -> None:
    book = LoadBook(4, history_s=900)
    book.add(0, window((0, 1), [3, 0, 0, 0]), 10.0)
    book.add(1, window((2, 3), [1, 0, 0, 0]), 10.0)
    assert book.balancedness(60.0, 10.0) == {1: pytest.approx(2 / 3)}


@given(st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 5)), min_size=1, max_size=60), st.floats(1, 200))
def test_history_and_total_agree(steps: list[tuple[float, int]], window_s: float) -> None:
    book = LoadBook(1, history_s=100)
    now_s, ends = 1000.0, []
    for span_s, rows in steps:
        now_s += span_s
        ends.append((now_s, rows))
        book.add(0, ShardWindow(span_s, (1,), (0,), [rows]), now_s)
    assert book.matrix(0, now_s).rows == [sum(rows for _, rows in ends)]
    # Snapshots are at least a 240th of the history apart: what is told is right for some moment that near.
    slack_s = 100 / SNAPSHOTS_MAX
    found = book.matrix(min(window_s, 100), now_s).rows[0]
    since_s = now_s - min(window_s, 100)
    fewest = sum(rows for at_s, rows in ends if at_s > since_s)
    most = sum(rows for at_s, rows in ends if at_s > since_s - slack_s)
    assert fewest <= found <= most


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (ShardWindow(1.0, (1, 3), (0, 1), [0] * 4), r"expert_load.layers: must be \(1, 2\), got \(1, 3\)"),
        (window((0, 1), [0] * 3), "expert_load.rows: must be 4, got 3"),
        (window((0, 7), [0] * 4), "expert_load.experts: must be below 4, got 7"),
        (window((2, 3), [0] * 4), "expert_load.experts: shard 0 held"),
    ],
)
def test_a_window_of_the_wrong_shape_is_refused(bad: ShardWindow, message: str) -> None:
    book = LoadBook(4, history_s=900)
    book.add(0, window((0, 1), [0] * 4), 10.0)
    with pytest.raises(ConfigError, match=message):
        book.add(0, bad, 20.0)


def test_the_operators_key_opens_and_nothing_else_does() -> None:
    guard = OperatorKey(b"sesame", "0.0.0.0")
    guard.check([("user-agent", "x"), ("authorization", "Bearer sesame")])
    for metadata in ([], [("authorization", "sesame")], [("authorization", "Bearer sesame ")]):
        with pytest.raises(Unauthenticated, match="authorization: Bearer KEY"):
            guard.check(metadata)


def test_without_a_key_only_the_loopback_interface_is_open() -> None:
    OperatorKey(None, "127.0.0.1").check([])
    OperatorKey(None, "localhost").check([])
    with pytest.raises(Unauthenticated, match=r"router\.operator_key_file"):
        OperatorKey(None, "0.0.0.0").check([("authorization", "Bearer x")])


def test_a_key_file_without_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("  secret\n")
    assert read_secret("f", tmp_path / "key") == "secret"
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "absent"):
        with pytest.raises(ConfigError, match=name):
            read_secret("f", tmp_path / name)


def test_shards_windows_come_back_from_get_load(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame\n")
    config = small_config(tmp_path, router={"port": 0, "operator_key_file": tmp_path / "key"})
    key = (("authorization", "Bearer sesame"),)

    async def test() -> None:
        async with ready_cell(config) as cell:
            for rank, shard in enumerate(cell.shards):
                experts = range(8 * rank, 8 * rank + 8)
                load = pb.ExpertLoad(span_s=2.0, layers=LAYERS, experts=experts, rows=[rank + 1] * 16)
                await shard.send(expert_load=load)
            while sum((found := await cell.cluster.GetLoad(pb.GetLoadRequest(), metadata=key)).rows) < 48:
                pass
            assert list(found.rows) == ([1] * 8 + [2] * 8) * 2
            assert (found.model_name, found.num_experts, list(found.layers)) == ("small", NUM_EXPERTS, [1, 2])
            assert [(shard.rank, list(shard.rows)) for shard in found.shards] == [(0, [8, 8]), (1, [16, 16])]
            assert found.history_s == 900
            for request, metadata, code, words in (
                (pb.GetLoadRequest(), (), grpc.StatusCode.UNAUTHENTICATED, "needs the operator's key"),
                (pb.GetLoadRequest(window_s=901), key, grpc.StatusCode.INVALID_ARGUMENT, "window_s: must be in 0..900"),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                    await cell.cluster.GetLoad(request, metadata=metadata)
                assert caught.value.code() is code

    run(test)
