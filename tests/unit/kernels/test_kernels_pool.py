"""Pools: sizes, closing, use from several threads, sleep."""

import threading
import time

import pytest
import torch

from moonshard.kernels import Bf16Linear, Pool


def test_refuses_no_threads_and_unknown_instruction_sets(pool: Pool) -> None:
    with pytest.raises(ValueError, match="num_threads: expected at least 1, found 0"):
        Pool(0)
    with pytest.raises(ValueError, match="cannot run 'mmx'"):
        Pool(1, "mmx")


def test_a_closed_pool_says_so(pool: Pool) -> None:
    matrix = Bf16Linear(32, 32)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        matrix.forward(pool, torch.zeros(1, 32))


def test_callers_take_turns(pool: Pool) -> None:
    x, matrix = torch.randn(4, 2048), Bf16Linear.pack(pool, torch.randn(512, 2048).bfloat16())
    expected = matrix.forward(pool, x)
    wrong: list[int] = []

    def call(shared: Pool) -> None:
        for i in range(20):
            if not torch.equal(matrix.forward(shared, x), expected):
                wrong.append(i)

    with Pool(3) as shared:
        threads = [threading.Thread(target=call, args=(shared,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert not wrong


def test_idle_threads_sleep(pool: Pool) -> None:
    x, matrix = torch.randn(4, 2048), Bf16Linear.pack(pool, torch.randn(512, 2048).bfloat16())
    with Pool(4) as idle:
        matrix.forward(idle, x)
        time.sleep(0.05)
        used = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - used < 0.1
