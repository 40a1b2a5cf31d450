"""Whether the cell can spare a worker now. Pure."""

from moonshard.router.members import Role, WorkerId, WorkerState
from moonshard.router.membership import Membership


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
    return ""
