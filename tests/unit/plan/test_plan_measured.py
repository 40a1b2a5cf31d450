"""A machine as `moonshard bench --describe` writes it, and `moonshard plan` reads it."""

from pathlib import Path

import pytest

from moonshard_cluster.bench.describe import DEEP, FEW, MANY, SHALLOW, Turns, describe, step_seconds, to_toml
from moonshard_cluster.bench.machine import KernelSpeed, Limits
from moonshard_cluster.plan.layout import on_one_machine
from moonshard_cluster.plan.machines import read_machine
from moonshard_cluster.plan.roofline import decode, prefill
from tests.unit.plan.test_plan_layouts import K25
from tests.unit.plan.test_plan_rates import PLAIN

LIMITS = Limits(read=50e9, int8=900e9, bf16=450e9)
KERNELS = [KernelSpeed(1, 45e9, 0.0, 0.9, 0.1), KernelSpeed(128, 1e9, 0.0, 0.02, 0.7)]


def steps(layers: int, message_us: float, step_us: float, sequence_us: float) -> dict[int, float]:
    """Decode steps of a model whose weights cost nothing, as the terms say. The first layer is dense."""
    return {b: (2 * (layers - 1) * message_us + step_us + b * sequence_us) * 1e-6 for b in (FEW, MANY)}


def test_the_terms_come_back_out_of_two_depths() -> None:
    found = Turns.of(steps(SHALLOW, 40, 700, 25), steps(DEEP, 40, 700, 25))
    assert (found.message, found.step, found.sequence) == pytest.approx((40e-6, 700e-6, 25e-6))


def test_noise_makes_no_term_negative() -> None:
    found = Turns.of({FEW: 0.002, MANY: 0.001}, {FEW: 0.001, MANY: 0.001})
    assert min(found.message, found.step, found.sequence) == 0


def test_rates_are_steps_turned_over() -> None:
    assert step_seconds({1: 250.0, 32: 1600.0}) == {1: 0.004, 32: 0.02}


def test_a_plan_reads_what_was_written(tmp_path: Path) -> None:
    machine = describe(LIMITS, KERNELS, Turns(40e-6, 700e-6, 25e-6), network_gb_s=8.0)
    path = tmp_path / "here.toml"
    path.write_text(to_toml(machine))
    assert read_machine(str(path)) == machine.model_copy(update={"name": "here"})
    assert machine.read == pytest.approx(45e9)
    assert machine.expert == pytest.approx(630e9)


def test_the_engines_turn_counts_sequences_and_not_rows() -> None:
    machine = PLAIN.model_copy(update={"step_us": 700.0, "sequence_us": 25.0})
    layout = on_one_machine(K25, machine)
    assert decode(K25, layout, 32, 0).engine == pytest.approx(1500e-6)
    assert prefill(K25, layout, 512, 512).engine == pytest.approx(725e-6)
    assert decode(K25, layout, 32, 0).path == pytest.approx(
        decode(K25, on_one_machine(K25, PLAIN), 32, 0).path + 1500e-6
    )
