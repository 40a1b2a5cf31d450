"""Layouts and their memory; machines from names and files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.errors import ConfigError
from moonshard_cluster.plan.costs import Costs
from moonshard_cluster.plan.layout import Demand, Layout, on_one_machine, recommended, smallest
from moonshard_cluster.plan.machines import KNOWN, Machine, read_machine

# K2.5 in INT4, as test_plan_costs.py has it from the published config.
K25 = Costs(
    num_experts=384,
    top_k=8,
    num_moe_layers=60,
    num_layers=61,
    expert_bytes=24_772_632,
    expert_ops=88_080_384,
    attention_bytes=23_444_463_616,
    attention_read=21_095_653_376,
    attention_ops=21_093_548_032,
    scores_ops=8_495_104,
    kv_bytes=70_272,
    row_bytes=14_336,
)
H100 = KNOWN["h100"]


def cpu(memory_gb: float) -> Machine:
    return KNOWN["cpu-2s"].model_copy(update={"memory_gb": memory_gb})


def flat(layout: Layout) -> float:
    return 1.0


def test_eight_80_gb_cards_hold_the_experts_and_a_ninth_the_attention() -> None:
    layout = smallest(K25, H100, H100, Demand())
    assert (layout.num_shards, layout.num_copies, layout.num_attention) == (8, 1, 1)
    assert layout.redundant_slots(K25) == 0
    # At all of its memory the card takes the one or five slots that are left; at 90 % none.
    assert Layout(8, 1, 1, H100.model_copy(update={"usable": 1.0}), H100).redundant_slots(K25) == 5


def test_one_cpu_host_holds_every_expert() -> None:
    assert smallest(K25, cpu(768), H100, Demand()).num_shards == 1
    assert smallest(K25, cpu(512), H100, Demand()).num_shards == 2


def test_recommended_survives_any_one_worker_and_holds_the_demand() -> None:
    demand = Demand(num_sequences=200, context=32_768)
    layout = recommended(K25, H100, H100, demand, flat)
    assert layout.num_shards == 8
    assert layout.num_copies == 2
    assert layout.num_attention >= 2
    assert layout.sequences(K25, demand.context) >= demand.num_sequences


def test_attention_workers_are_added_while_they_pay_for_themselves() -> None:
    few = recommended(K25, H100, H100, Demand(1, 100), flat)
    many = recommended(K25, H100, H100, Demand(1, 100), lambda layout: layout.num_attention**2)
    assert few.num_attention == 2
    assert many.num_attention > few.num_attention


def test_what_fits_nowhere_says_how_much_is_missing() -> None:
    small = H100.model_copy(update={"memory_gb": 20.0})
    with pytest.raises(ConfigError, match=r"h100 has 18.0 GB for weights, an attention worker's weights takes 23.4 GB"):
        smallest(K25, H100, small, Demand())
    tiny = H100.model_copy(update={"memory_gb": 1.0})
    with pytest.raises(ConfigError, match=r"one expert of every layer takes 1.5 GB"):
        smallest(K25, tiny, H100, Demand())
    with pytest.raises(ConfigError, match=r"the whole cell takes 594.2 GB"):
        on_one_machine(K25, cpu(512))


@given(memory=st.floats(30, 2000), context=st.integers(1, 262_144), sequences=st.integers(1, 500))
def test_every_layout_fits_its_machines(memory: float, context: int, sequences: int) -> None:
    machine, demand = cpu(memory), Demand(sequences, context)
    for layout in (smallest(K25, machine, machine, demand), recommended(K25, machine, machine, demand, flat)):
        assert layout.shard_bytes(K25) <= machine.usable_bytes
        assert K25.num_experts % layout.num_shards == 0
        held = layout.shard_bytes(K25) + layout.redundant_slots(K25) * K25.expert_bytes * K25.num_moe_layers
        assert held <= machine.usable_bytes
        assert layout.kv_bytes_free(K25) * layout.num_attention >= K25.kv_bytes * context


def test_machines_come_by_name_or_from_a_file(tmp_path: Path) -> None:
    assert read_machine("h200").memory_gb == 141
    path = tmp_path / "mine.toml"
    text = 'kind = "cpu"\nmemory_gb = 24\nread_gb_s = 92\nbf16_tflops = 0.5\nexpert_tops = 0.9\nnetwork_gb_s = 5\n'
    path.write_text(text)
    assert read_machine(str(path)).name == "mine"
    path.write_text(text + "read_gbs = 3\n")
    with pytest.raises(ConfigError, match="read_gbs: unknown key; did you mean 'read_gb_s'"):
        read_machine(str(path))
    with pytest.raises(ConfigError, match=r"one of a100-80, h100, .* got 'h1000'"):
        read_machine("h1000")
