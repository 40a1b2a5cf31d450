import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moonshard.kernels.tally import NUM_SIZES, SIZE_BOUNDS, Tally


def test_a_batch_is_counted_by_expert_and_by_size() -> None:
    tally = Tally(2, 4)
    tally.add(1, np.array([0] * 4 + [2] * 5 + [3], np.int32))
    assert tally.rows_LE.tolist() == [[0, 0, 0, 0], [4, 0, 5, 1]]
    assert (tally.active_L.tolist(), tally.batches_L.tolist()) == ([0, 3], [0, 1])
    assert tally.sizes_B.tolist() == [1, 0, 1, 1] + [0] * 14  # 1 row; 4 rows; 5 rows are in the class up to 8


def test_an_empty_batch_is_a_batch() -> None:
    tally = Tally(1, 4)
    tally.add(0, np.array([], np.int32))
    assert (tally.batches_L.tolist(), tally.active_L.tolist(), tally.sizes_B.sum()) == ([1], [0], 0)


@given(st.integers(1, 200_000))
def test_a_size_class_ends_at_its_bound(rows: int) -> None:
    tally = Tally(1, 1)
    tally.add(0, np.zeros(rows, np.int32))
    size = int(tally.sizes_B.argmax())
    assert size == NUM_SIZES - 1 or rows <= SIZE_BOUNDS[size]
    assert size == 0 or rows > SIZE_BOUNDS[size - 1]
