"""What an attention worker does about shards that come and go: whom it meets, whom it hears of, whom it accuses."""

import time
from collections.abc import Sequence

from moonshard.attention.failover_metrics import register_failover_metrics
from moonshard.collective import open_meeting
from moonshard.errors import PeerLost, TransportError
from moonshard.topology import Topology
from moonshard.transport.all_to_all import AllToAllDispatcher
from moonshard.transport.links import Disagreement, LinkDispatcher, Patience, Recheck, Recovery, Suspicion, Target
from moonshard.transport.routing_table import RoutingTable
from moonshard.v1 import control_pb2 as pb
from moonshard.worker import Worker

RETRY_S = 0.1


def patience_of(worker: Worker) -> Patience:
    limits = worker.config.timeouts
    return Patience(
        reply_s=limits.combine_s,
        failover_s=limits.failover_s,
        hedge_s=limits.hedge_s,
        degrade_s=limits.degraded_after_s,
    )


def targets_of(members: pb.Members) -> list[Target]:
    return [Target(shard.shard, shard.replica, shard.data_address) for shard in members.shards]


def choose(targets: Sequence[Target], num_shards: int, rank: int) -> list[Target]:
    """One copy of every shard, in shard order; attention workers start with different ones. PeerLost without any."""
    chosen = []
    for shard in range(num_shards):
        copies = sorted(target for target in targets if target.shard == shard)
        if not copies:
            raise PeerLost(f"shard {shard}: no copy is ready")
        chosen.append(copies[rank % len(copies)])
    return chosen


def meet_shards(worker: Worker, members: pb.Members, table: RoutingTable | None = None) -> LinkDispatcher:
    """Links to one copy of every shard. One that dies meanwhile is waited for, as later. Raises TransportError."""
    patience = patience_of(worker)
    deadline = time.monotonic() + patience.failover_s
    while True:
        try:
            targets = choose(targets_of(members), worker.spec.num_shards, worker.rank)
            return LinkDispatcher(worker.spec, worker.rank, targets, worker.config.timeouts.combine_s, patience, table)
        except TransportError:
            if time.monotonic() > deadline or worker.lifetime.stopping.wait(RETRY_S):
                raise
            members = _newer(worker, members)


def _newer(worker: Worker, members: pb.Members) -> pb.Members:
    """What the router has said since. Nothing else comes before this worker is ready."""
    told = [it.members for it in worker.inbox.drain() if it.WhichOneof("body") == "members"]
    return told[-1] if told else members


def follow_members(worker: Worker, dispatcher: LinkDispatcher, members: pb.Members) -> None:
    """From now on the dispatcher hears of every membership at once, and the router of every suspicion."""

    def tell(found: pb.Members) -> None:
        dispatcher.update_members(found.epoch, targets_of(found))

    worker.inbox.on_members = tell
    tell(_newer(worker, members))
    worker.lifetime.on_stop.append(lambda: dispatcher.give_up(f"the worker stops: {worker.lifetime.reason}"))
    worker.health.readiness = lambda: missing_shards(dispatcher) if worker.link.is_connected else "lost the router"
    _tell_of(worker, dispatcher.recovery, dispatcher.recheck)
    dispatcher.recheck.alarm = lambda found: worker.link.send(disagreement_message(found, worker.topology))
    dispatcher.recheck.every = worker.config.attention.recheck_every


def join_groups(worker: Worker) -> AllToAllDispatcher:
    """all_to_all: the first group, and every later one. Blocks until all ranks have loaded. Raises TransportError."""
    meeting = open_meeting(worker, is_shard=False)
    worker.link.send(pb.WorkerMessage(loaded=pb.Loaded()))
    dispatcher = AllToAllDispatcher(meeting, worker.spec, worker.config.timeouts.load_s)
    _tell_of(worker, dispatcher.recovery, Recheck(worker.spec))  # there is no second copy to ask
    return dispatcher


def _tell_of(worker: Worker, recovery: Recovery, recheck: Recheck) -> None:
    register_failover_metrics(worker.registry, worker.model_name, worker.rank, recovery, recheck)
    recovery.tell = lambda suspicion: worker.link.send(suspicion_message(suspicion))


def missing_shards(dispatcher: LinkDispatcher) -> str:
    lost = dispatcher.lost_shards
    return f"no link to shards {lost}" if lost else ""


def suspicion_message(suspicion: Suspicion) -> pb.WorkerMessage:
    return pb.WorkerMessage(suspicion=pb.Suspicion(**suspicion._asdict()))


def disagreement_message(found: Disagreement, topology: Topology) -> pb.WorkerMessage:
    ranks = [found.shard + topology.num_shards * replica for replica in found.replicas]
    kind = pb.Alarm.KIND_DISAGREEMENT
    return pb.WorkerMessage(alarm=pb.Alarm(kind=kind, ranks=ranks, layer=found.layer, experts=found.experts))
