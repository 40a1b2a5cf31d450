"""Which workers a cell can spare, and what it says of those that it cannot."""

from dataclasses import replace

from moonshard.placed import Placement
from moonshard.router.leaving import why_it_stays
from moonshard.router.members import Credits, Role, Worker, WorkerId
from moonshard.router.membership import Membership
from moonshard.topology import Topology

CREDITS = Credits(block_size=16, num_blocks=4, max_num_seqs=2, max_step_tokens=8)


def expert(rank: int) -> WorkerId:
    return WorkerId(Role.EXPERT, rank)


def attention(rank: int) -> WorkerId:
    return WorkerId(Role.ATTENTION, rank)


def cell(num_attention: int = 2, num_replicas: int = 1) -> Membership:
    """Whole: three shards of four experts."""
    topology = Topology(12, 3, num_attention, num_replicas)
    state = Membership(topology, "c")
    experts = [expert(rank) for rank in range(topology.num_expert_workers)]
    for worker_id in (*experts, *map(attention, range(num_attention))):
        held = topology.experts_of(worker_id.rank % 3) if worker_id.role is Role.EXPERT else range(0)
        state, _ = state.join(Worker(worker_id, 7, "here", "here:1", held, "c"))
        state, _ = state.ready(worker_id, "unix:/x", None if held else CREDITS)
    return state


def test_a_shard_needs_a_copy_that_is_ready() -> None:
    assert why_it_stays(cell(), expert(1)) == "without expert-1 4 of 12 experts have no live copy"
    pair = cell(num_replicas=2)
    assert why_it_stays(pair, expert(1)) == ""
    drained, _ = pair.in_service(expert(1), False)
    assert why_it_stays(drained, expert(1)) == "", "it is out of service already"
    assert why_it_stays(drained, expert(4)) == "without expert-4 4 of 12 experts have no live copy"
    assert why_it_stays(drained, expert(5)) == ""


def test_copies_of_its_experts_on_other_shards_serve_as_well() -> None:
    everywhere = (tuple(range(12)),) * 3
    state = replace(cell(), placement=Placement(3, 12, (1,), (everywhere,)))
    assert why_it_stays(state, expert(1)) == ""


def test_an_attention_worker_needs_another_one() -> None:
    assert why_it_stays(cell(), attention(0)) == ""
    assert why_it_stays(cell(num_attention=1), attention(0)) == "no attention worker but attention-0 is ready"
    drained, _ = cell().in_service(attention(1), False)
    assert why_it_stays(drained, attention(0)) == "no attention worker but attention-0 is ready"


def test_nobody_leaves_a_cell_that_never_was_whole() -> None:
    topology = Topology(12, 3, 1)
    state, _ = Membership(topology, "c").join(Worker(expert(0), 7, "here", "here:1", range(4), "c"))
    assert why_it_stays(state, expert(0)).startswith("the cell is not whole yet: expert-0 is loading")
