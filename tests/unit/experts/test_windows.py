import numpy as np

from moonshard.experts.counters import LoadCounters
from moonshard.experts.windows import LoadWindows, WindowRule

RULE = WindowRule(min_s=5.0, min_rows=4)


def serve(counters: LoadCounters, layer: int, *experts: int) -> None:
    counters.add(layer, np.array([experts], np.int32))


def test_nothing_leaves_before_the_window_is_long_and_every_layer_full() -> None:
    counters = LoadCounters((1, 2), range(8, 12))
    windows = LoadWindows(counters, RULE, now_s=100.0)
    serve(counters, 1, 8, 9, 8, -1, 11)
    serve(counters, 2, 8, 9, 10)
    assert windows.take(110.0) is None, "layer 2 has three pairs"
    assert not windows.told_LE.any()
    serve(counters, 2, 8)
    assert windows.take(104.9) is None, "too short"
    window = windows.take(110.0)
    assert window is not None
    assert window.span_s == 10.0
    assert window.rows_LE.tolist() == [[2, 1, 0, 1], [2, 1, 1, 0]]


def test_windows_add_up_to_what_was_served() -> None:
    counters = LoadCounters((1,), range(4))
    windows = LoadWindows(counters, WindowRule(0.0, 2), now_s=0.0)
    total = np.zeros((1, 4), np.int64)
    for now_s in range(1, 20):
        serve(counters, 1, now_s % 4)
        if window := windows.take(float(now_s)):
            total += window.rows_LE
            assert np.array_equal(total, windows.told_LE)
    assert total.sum() == 18, "the nineteenth pair waits for a second"


def test_an_idle_shard_tells_nothing() -> None:
    windows = LoadWindows(LoadCounters((1,), range(4)), WindowRule(0.0, 0), now_s=0.0)
    assert windows.take(60.0) is None
