"""A worker's part in the groups of all_to_all: it hears of every membership, and tells the router of a lost group."""

from moonshard.transport.all_to_all import Meeting, Roster, Seat
from moonshard.v1 import control_pb2 as pb
from moonshard.worker import Worker


def open_meeting(worker: Worker, is_shard: bool) -> Meeting:
    """Where the worker's groups come from, one after the other. Before it tells the router that it has loaded.

    Raises ConfigError or PeerLost when shard 0 cannot listen at collective_address.
    """
    config = worker.config
    seat = Seat(
        address=config.collective_address,
        num_shards=config.num_shards,
        number=worker.rank,
        is_shard=is_shard,
        device=worker.device,
        join_s=config.timeouts.join_s,
        exchange_s=config.timeouts.combine_s,
        recover_s=config.timeouts.failover_s,
    )

    def report(epoch: int, reason: str) -> None:
        worker.link.send(pb.WorkerMessage(group_lost=pb.GroupLost(epoch=epoch, reason=reason)))

    meeting = Meeting(seat, report)
    # At once, in the link's thread: the loop may be waiting for a rank that is gone.
    worker.inbox.on_members = lambda members: meeting.tell(Roster(members.epoch, tuple(members.attention)))
    worker.lifetime.on_stop.append(lambda: meeting.end(f"the worker stops: {worker.lifetime.reason}"))
    worker.health.readiness = lambda: readiness(worker, meeting)
    return meeting


def readiness(worker: Worker, meeting: Meeting) -> str:
    """What keeps the worker from serving, in words."""
    if not worker.link.is_connected:
        return "lost the router"
    return "" if meeting.is_whole else "no group of all ranks"
