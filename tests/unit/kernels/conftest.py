"""Kernels need to be built before they are tested."""

from collections.abc import Iterator

import pytest

from moonshard import kernels


@pytest.fixture
def pool() -> Iterator[kernels.Pool]:
    """One thread, the best instruction set; skips where the kernels are not built."""
    if not kernels.available():
        pytest.skip("native kernels are not built: run python -m moonshard.kernels")
    with kernels.Pool(1) as pool:
        yield pool
