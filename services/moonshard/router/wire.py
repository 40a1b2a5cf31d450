"""Control messages to the router's nouns and back. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from moonshard.errors import ConfigError
from moonshard.router.account import FreeCredits
from moonshard.router.flight import Flight, SequenceUpdate
from moonshard.router.members import Credits, Members, Role, Vitals, Welcome, Worker, WorkerId, WorkerState
from moonshard.router.requests import Grammar
from moonshard.rpc.codec import finish_from_proto, logprobs_from_proto, sampling_to_proto
from moonshard.v1 import control_pb2 as pb

ROLES = {pb.ROLE_ATTENTION: Role.ATTENTION, pb.ROLE_EXPERT: Role.EXPERT}
ROLE_NUMBERS = {role: number for number, role in ROLES.items()}
STATE_NUMBERS = {
    WorkerState.LOADING: pb.WORKER_STATE_LOADING,
    WorkerState.LOADED: pb.WORKER_STATE_LOADING,
    WorkerState.READY: pb.WORKER_STATE_READY,
    WorkerState.DRAINING: pb.WORKER_STATE_DRAINING,
}


def worker_from_join(join: pb.Join) -> Worker:
    """Raises ConfigError for a role that cannot join."""
    if join.role not in ROLES:
        raise ConfigError("role", f"must be attention or expert, got {join.role}")
    return Worker(
        id=WorkerId(ROLES[join.role], join.rank),
        pid=join.pid,
        host=join.host,
        metrics_address=join.metrics_address,
        experts=range(join.first_expert, join.end_expert),
        checkpoint_id=join.checkpoint_id,
        epoch=join.epoch,
    )


def credits_from_ready(ready: pb.Ready) -> Credits | None:
    if not ready.HasField("credits"):
        return None
    found = ready.credits
    return Credits(found.block_size, found.num_blocks, found.max_num_seqs, found.max_step_tokens)


def vitals_from_heartbeat(beat: pb.Heartbeat) -> Vitals:
    return Vitals(beat.progress, beat.loaded_bytes, beat.total_bytes, beat.tokens, beat.resident_bytes)


def news_from_outputs(message: pb.SequenceOutputs) -> tuple[list[SequenceUpdate], FreeCredits | None]:
    return list(map(_update_from_output, message.outputs)), _free_credits(message)


def _free_credits(message: pb.SequenceOutputs) -> FreeCredits | None:
    if not message.HasField("free"):
        return None
    free = message.free
    return FreeCredits(free.num_free_blocks, free.num_free_seqs, free.num_admitted, free.num_pending_tokens)


def _update_from_output(output: pb.SequenceOutput) -> SequenceUpdate:
    return SequenceUpdate(
        sequence_id=output.request_id,
        token_ids=tuple(output.token_ids),
        finish_reason=finish_from_proto(output.finish_reason),
        stop_token_id=output.stop_token_id if output.HasField("stop_token_id") else None,
        error=output.error,
        preempted=output.preempted,
        num_cached_tokens=output.num_cached_tokens,
        num_degraded=output.num_degraded_tokens,
        logprobs=tuple(map(logprobs_from_proto, output.logprobs)),
        prompt_logprobs=tuple(map(logprobs_from_proto, output.prompt_logprobs)),
    )


def membership_message(message: Welcome | Members, placement: pb.Placement | None = None) -> pb.RouterMessage:
    """placement: for a welcome; None is contiguous blocks."""
    if isinstance(message, Welcome):
        return pb.RouterMessage(welcome=pb.Welcome(epoch=message.epoch, placement=placement))
    shards = [pb.Shard(shard=it.shard, replica=it.replica, data_address=it.data_address) for it in message.copies]
    return pb.RouterMessage(members=pb.Members(epoch=message.epoch, shards=shards, attention=message.attention))


def admit_message(flights: Sequence[Flight]) -> pb.RouterMessage:
    return pb.RouterMessage(admit=pb.Admit(sequences=map(_sequence_to_proto, flights)))


def _sequence_to_proto(flight: Flight) -> pb.Sequence:
    request = flight.request
    return pb.Sequence(
        request_id=flight.sequence_id,
        prompt_token_ids=request.prompt_token_ids,
        sampling=sampling_to_proto(replace(request.sampling, stop=(), constraint=None)),
        output_token_ids=flight.output.token_ids,
        grammar=_grammar_to_proto(request.grammar) if request.grammar else None,
        traced=request.traced,
    )


def _grammar_to_proto(grammar: Grammar) -> pb.Grammar:
    return pb.Grammar(text=grammar.text, after_token_id=grammar.after_token_id)


def worker_status(worker: Worker, heartbeat_age_s: float, tokens_per_second: float) -> pb.WorkerStatus:
    return pb.WorkerStatus(
        role=ROLE_NUMBERS[worker.id.role],
        rank=worker.id.rank,
        pid=worker.pid,
        host=worker.host,
        state=STATE_NUMBERS[worker.state],
        metrics_address=worker.metrics_address,
        data_address=worker.data_address,
        first_expert=worker.experts.start,
        end_expert=worker.experts.stop,
        loaded_bytes=worker.vitals.loaded_bytes,
        total_bytes=worker.vitals.total_bytes,
        heartbeat_age_s=heartbeat_age_s,
        tokens_per_second=tokens_per_second,
        resident_bytes=worker.vitals.resident_bytes,
    )
