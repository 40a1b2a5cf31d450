"""The roofline: its terms by hand, its limits, and where separation loses."""

import dataclasses
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard_cluster.plan import published
from moonshard_cluster.plan.layout import Layout, on_one_machine
from moonshard_cluster.plan.machines import KNOWN, Machine
from moonshard_cluster.plan.roofline import decode, fits_wide_ep, prefill, wide_ep_decode
from tests.unit.plan.test_plan_layouts import K25

# Round numbers, so that the terms can be worked out by hand.
PLAIN = Machine(
    name="plain",
    kind="cpu",
    memory_gb=1000,
    read_gb_s=1000,
    bf16_tflops=100,
    expert_tops=200,
    network_gb_s=10,
    latency_us=10,
    step_us=0,
    sequence_us=0,
    usable=1.0,
    read_share=1.0,
    compute_share=1.0,
)
EIGHT = Layout(8, 1, 1, PLAIN, PLAIN)


def test_one_token_by_hand() -> None:
    found = decode(K25, EIGHT, 1, context=1000)
    assert found.attention_read == pytest.approx(21.0957e9 / 1e12, rel=1e-4)
    assert found.kv_read == pytest.approx(1000 * 70_272 / 1e12)
    assert found.attention_compute == pytest.approx((21.0935e9 + 1000 * 8_495_104) / 1e14, rel=1e-4)
    assert found.expert_read == pytest.approx(11.8909e9 / 8 / 1e12, rel=1e-4)
    assert found.expert_compute == pytest.approx(8 * 60 * 88_080_384 / 8 / 2e14)
    assert found.network == pytest.approx(9.0833e6 / 1e10, rel=1e-4)
    assert found.latency == pytest.approx(2 * 60 * 10e-6)
    assert found.step == pytest.approx(
        found.attention_read + found.kv_read + found.expert_read + found.uneven + found.network + found.latency
    )


def test_a_token_of_k25_reads_33_gb_wherever_they_lie() -> None:
    found = decode(K25, on_one_machine(K25, PLAIN), 1, context=0)
    assert (found.attention_read + found.expert_read) * 1e12 / 1e9 == pytest.approx(33.0, abs=0.05)


@given(st.integers(1, 4000), st.integers(0, 100_000))
def test_more_sequences_never_make_a_step_shorter_nor_the_rate_smaller(batch: int, context: int) -> None:
    one, more = decode(K25, EIGHT, batch, context).step, decode(K25, EIGHT, batch + 1, context).step
    assert more >= one
    assert (batch + 1) / more >= batch / one * (1 - 1e-9)


def test_expert_reading_is_flat_between_a_few_hundred_and_thousands_of_tokens() -> None:
    few, many = decode(K25, EIGHT, 256, 0), decode(K25, EIGHT, 4000, 0)
    assert many.expert_read / few.expert_read < 1.01


def test_many_attention_workers_are_bound_by_the_shards() -> None:
    crowd = Layout(8, 1, 400, PLAIN, PLAIN)
    found = decode(K25, crowd, 400, 0)
    assert found.step == found.shard_busy > found.path
    assert decode(K25, Layout(8, 2, 400, PLAIN, PLAIN), 400, 0).step < found.step


def test_separation_loses_to_wide_ep_when_batches_are_large_and_not_when_they_are_one() -> None:
    """Every machine of wide EP attends; of a separated cell only the attention workers do."""
    h200 = KNOWN["h200"]
    layout = Layout(8, 1, 2, h200, h200)

    def gain(batch: int) -> float:
        wide = wide_ep_decode(K25, h200, layout.num_machines, batch, 8192).step
        return wide / decode(K25, layout, batch, 8192).step - 1

    assert abs(gain(1)) < 0.1
    assert gain(512) < -0.5
    assert gain(512) < gain(64) < gain(1)


def test_wide_ep_on_80_gb_cards_needs_more_of_them() -> None:
    h100 = KNOWN["h100"]
    assert not fits_wide_ep(K25, h100, 9)
    assert fits_wide_ep(K25, h100, 16)


def test_prefill_is_bound_by_arithmetic() -> None:
    found = prefill(K25, EIGHT, chunk=4096, prompt=4096)
    assert found.attention_compute > found.attention_read + found.kv_read
    assert found.kv_read == pytest.approx(2048 * 70_272 / 1e12)


def test_the_published_table_row_by_row() -> None:
    wide = dataclasses.replace(K25, expert_bytes=88_080_384)  # two bytes for each of 44.04 M parameters
    rows = {row.claim: row for row in published.rows(K25, wide, vision_bytes=942_000_000)}
    assert rows["FP16 weights, about 2 TB"].ratio == pytest.approx(1.027, abs=0.002)
    assert rows["INT4 weights, about 630 GB"].ratio == pytest.approx(0.945, abs=0.002)
    assert rows["checkpoint on disk, about 595 GB"].ratio == pytest.approx(1, abs=0.001)
    assert rows["8 x 80 GB hold the INT4 weights"].ratio < 1
    assert "19 GB are missing" in rows["8 x 80 GB hold the INT4 weights"].verdict
    assert "needs 95 GB of its 80" in rows["8 x 80 GB hold the INT4 weights"].verdict
    assert rows["vLLM: 714 GB of GPU memory for INT4"].ratio == pytest.approx(1, abs=0.03)
    assert rows["KV cache of 256K tokens, 17.2 GiB"].ratio == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize(("rows", "parts"), [(1, 8), (1, 2), (4, 8), (32, 8), (32, 2), (8, 48)])
def test_the_fullest_shard_is_as_full_as_in_a_simulation(rows: int, parts: int) -> None:
    draw, group, most = random.Random(1), K25.num_experts // parts, list[float]()
    for _ in range(2000):
        active = {expert for _ in range(rows) for expert in draw.sample(range(K25.num_experts), K25.top_k)}
        most.append(max(Counter(expert // group for expert in active).values()) * parts / len(active))
    assert 1 + K25.unevenness(rows, parts) == pytest.approx(sum(most) / len(most), rel=0.12)


def test_when_every_expert_works_no_shard_has_more_than_its_share() -> None:
    assert K25.unevenness(5000, 8) == pytest.approx(0, abs=1e-6)
    assert K25.unevenness(5, 1) == 0
