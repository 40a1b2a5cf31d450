"""What every transport must do alike, compared bit by bit with the local twin."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moonshard.transport.contract import Dispatcher, WireSpec
from moonshard.transport.local import LocalDispatcher
from tests.contract.transport_cluster import Cell, Script, compute, expected, make_rows, make_spec, same_bits

MakeCell = Callable[..., Cell]
Rows = tuple[Tensor, Tensor, Tensor]


def one_step(spec: WireSpec, rows: Rows) -> Script:
    """Run `rows` through every layer once."""

    def script(dispatcher: Dispatcher) -> list[Tensor]:
        dispatcher.begin_step(len(rows[0]))
        return [dispatcher.combine(dispatcher.dispatch(layer, *rows)) for layer in spec.moe_layers]

    return script


def assert_as_local(spec: WireSpec, rows: Rows, results: list[Tensor]) -> None:
    for layer, y_TD in zip(spec.moe_layers, results, strict=True):
        assert same_bits(y_TD, expected(spec, layer, rows)), f"layer {layer} differs from the local twin"


@pytest.mark.parametrize("row_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("num_rows", [1, 7, 300])
def test_same_bits_as_the_local_twin(make_cell: MakeCell, row_dtype: torch.dtype, num_rows: int) -> None:
    spec = make_spec(row_dtype=row_dtype)
    rows = make_rows(spec, num_rows)
    [results] = make_cell(spec).run([one_step(spec, rows)])
    assert_as_local(spec, rows, results)


def test_all_rows_to_one_shard(make_cell: MakeCell) -> None:
    spec = make_spec()
    rows = make_rows(spec, 20, experts=range(24, 36))
    [results] = make_cell(spec).run([one_step(spec, rows)])
    assert_as_local(spec, rows, results)


def test_a_shard_without_rows(make_cell: MakeCell) -> None:
    spec = make_spec()
    rows = make_rows(spec, 20, experts=range(12, 48))
    [results] = make_cell(spec).run([one_step(spec, rows)])
    assert_as_local(spec, rows, results)


def test_no_rows_at_all(make_cell: MakeCell) -> None:
    spec = make_spec()
    [results] = make_cell(spec).run([one_step(spec, make_rows(spec, 0))])
    assert [y_TD.shape for y_TD in results] == [(0, spec.hidden_size)] * 3


def test_odd_hidden_size_in_bf16(make_cell: MakeCell) -> None:
    spec = make_spec(hidden_size=5, row_dtype=torch.bfloat16)
    rows = make_rows(spec, 3)
    [results] = make_cell(spec).run([one_step(spec, rows)])
    assert_as_local(spec, rows, results)


def test_caller_may_use_int64_ids_and_strided_rows(make_cell: MakeCell) -> None:
    spec = make_spec()
    x_TD, ids_TK, weights_TK = make_rows(spec, 6)
    strided = (x_TD.T.contiguous().T, ids_TK.long(), weights_TK.double())
    [results] = make_cell(spec).run([one_step(spec, strided)])
    assert_as_local(spec, (x_TD, ids_TK, weights_TK), results)


def test_many_steps_with_changing_row_counts(make_cell: MakeCell) -> None:
    spec = make_spec()
    steps = [make_rows(spec, num_rows, seed) for seed, num_rows in enumerate([3, 1, 40, 0, 2])]

    def script(dispatcher: Dispatcher) -> list[list[Tensor]]:
        return [one_step(spec, rows)(dispatcher) for rows in steps]

    [results] = make_cell(spec).run([script])
    for rows, result in zip(steps, results, strict=True):
        assert_as_local(spec, rows, result)


def test_two_attention_workers_with_different_row_counts(make_cell: MakeCell) -> None:
    spec = make_spec(row_dtype=torch.bfloat16)
    both = [make_rows(spec, 5, seed=1), make_rows(spec, 33, seed=2)]

    def repeated(rows: Rows) -> Script:
        return lambda dispatcher: [one_step(spec, rows)(dispatcher) for _ in range(4)]

    for rows, steps in zip(both, make_cell(spec, 2).run([repeated(rows) for rows in both]), strict=True):
        for result in steps:
            assert_as_local(spec, rows, result)


def test_an_idle_attention_worker_never_blocks_the_other(make_cell: MakeCell) -> None:
    spec = make_spec()
    rows = make_rows(spec, 4)
    [results, _] = make_cell(spec, 2).run([one_step(spec, rows), lambda dispatcher: dispatcher.idle(0.05)])
    assert_as_local(spec, rows, results)


def test_work_after_a_pause_of_all(make_cell: MakeCell) -> None:
    spec = make_spec()
    rows = make_rows(spec, 4)

    def script(dispatcher: Dispatcher) -> list[Tensor]:
        dispatcher.idle(0.3)
        one_step(spec, rows)(dispatcher)
        dispatcher.idle(0.2)
        return one_step(spec, rows)(dispatcher)  # type: ignore[no-any-return]

    [results, _] = make_cell(spec, 2).run([script, lambda dispatcher: dispatcher.idle(0.3)])
    assert_as_local(spec, rows, results)


def test_wake_ends_idle_at_once(make_cell: MakeCell) -> None:
    def script(dispatcher: Dispatcher) -> float:
        threading.Timer(0.3, dispatcher.wake).start()
        started = time.monotonic()
        dispatcher.idle(15.0)
        return time.monotonic() - started

    [waited_s] = make_cell(make_spec()).run([script])
    assert 0.25 < waited_s < 5


def test_a_wake_before_idle_is_not_lost(make_cell: MakeCell) -> None:
    def script(dispatcher: Dispatcher) -> float:
        started = time.monotonic()
        for _ in range(5):
            dispatcher.wake()
            dispatcher.idle(15.0)
        return time.monotonic() - started

    [waited_s] = make_cell(make_spec()).run([script])
    assert waited_s < 5


def test_stats_count_rows_bytes_and_waits(make_cell: MakeCell) -> None:
    spec = make_spec()

    def script(dispatcher: Dispatcher) -> Any:
        one_step(spec, make_rows(spec, 300))(dispatcher)
        return dispatcher.stats

    [stats] = make_cell(spec).run([script])
    assert (stats.num_dispatches, stats.num_rows) == (3, 900)
    assert len(stats.sent_bytes) == len(stats.received_bytes) == len(stats.wait_s) == 4


def test_tiny_integers_by_hand() -> None:
    """Two shards of two experts, three rows. Expert e multiplies by e + 1; weights 1 and 10."""
    spec = make_spec(hidden_size=1, top_k=2, num_experts=4, num_shards=2)
    seen: list[tuple[int, list[float], list[list[int]], list[list[float]]]] = []

    def experts(shard: int, layer: int, x_RD: Tensor, ids_RK: Tensor, weights_RK: Tensor) -> Tensor:
        seen.append((shard, x_RD[:, 0].tolist(), ids_RK.tolist(), weights_RK.tolist()))
        return ((ids_RK + 1) * weights_RK * (ids_RK >= 0)).sum(1, keepdim=True) * x_RD

    local = LocalDispatcher(spec, experts)
    x_TD = torch.tensor([[1.0], [2.0], [3.0]])
    handle = local.dispatch(1, x_TD, torch.tensor([[0, 3], [1, 0], [2, 3]]), torch.tensor([[1.0, 10.0]] * 3))
    y_TD = local.combine(handle)
    assert seen == [
        (0, [1.0, 2.0], [[0, -1], [1, 0]], [[1.0, 10.0], [1.0, 10.0]]),
        (1, [1.0, 3.0], [[-1, 3], [2, 3]], [[1.0, 10.0], [1.0, 10.0]]),
    ]
    # row 0: 1*1 + 4*10; row 1: (2*1 + 1*10) * 2; row 2: (3*1 + 4*10) * 3
    assert y_TD[:, 0].tolist() == [41.0, 24.0, 129.0]


def test_the_stand_in_experts_depend_on_everything() -> None:
    spec = make_spec()
    x_TD, ids_TK, weights_TK = make_rows(spec, 2)
    base = compute(0, 1, x_TD, ids_TK, weights_TK)
    for other in (
        compute(1, 1, x_TD, ids_TK, weights_TK),
        compute(0, 2, x_TD, ids_TK, weights_TK),
        compute(0, 1, x_TD, ids_TK + 1, weights_TK),
        compute(0, 1, x_TD, ids_TK, weights_TK * 2),
    ):
        assert not torch.equal(base, other)
