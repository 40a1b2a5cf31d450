"""Whether the cell can spare a worker now. Pure."""

from moonshard.router.membership import Membership, Role, WorkerId, WorkerState


def why_it_stays(membership: Membership, worker_id: WorkerId) -> str:
    """What keeps a worker of the cell from leaving service, in words; empty when nothing does."""
    worker = membership.workers[worker_id]
    if worker.state is WorkerState.DRAINING:
        return ""
    if worker.state is WorkerState.LOADING or not membership.is_formed:
        return f"the cell is not whole yet: {membership.describe_missing()}"
    left, _ = membership.in_service(worker_id, False)
    if worker_id.role is Role.ATTENTION:
        return "" if left.serves(Role.ATTENTION) else f"no attention worker but {worker_id} is ready"
    if not left.coverage.complete:
        num_bare = left.coverage.num_experts - left.coverage.num_covered
        return f"without {worker_id} {num_bare} of {left.coverage.num_experts} experts have no live copy"
    # Experts may have copies on other shards, but rows go by the placement: while it names this one, it must be there.
    shard = membership.topology.shard_of(worker_id.rank)
    twins = (it for it in left.workers.values() if it.id.role is Role.EXPERT and it.state is WorkerState.READY)
    if not any(membership.topology.shard_of(it.id.rank) == shard for it in twins):
        return f"rows go to shard {shard}, which only {worker_id} serves"
    return ""
