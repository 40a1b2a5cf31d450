"""Control messages to the engine's nouns and back."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from moonshard.attention.block_tables import CacheEvent, Removed, Stored
from moonshard.attention.engine import Engine, Output
from moonshard.attention.guide import Guide
from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.rpc import codec
from moonshard.v1 import control_pb2 as pb


def sequence_from_proto(message: pb.Sequence, guide: Guide | None = None) -> Sequence:
    """guide: of its grammar; one that has a grammar and no guide awaits it. Raises RequestError naming the field."""
    return Sequence(
        message.request_id,
        list(message.prompt_token_ids),
        codec.sampling_from_proto(message.sampling),
        list(message.output_token_ids),
        guide,
        awaits_grammar=message.HasField("grammar") and guide is None,
        traced=message.traced,
    )


def outputs_message(outputs: Iterable[Output], free: pb.FreeCredits) -> pb.WorkerMessage:
    return pb.WorkerMessage(outputs=pb.SequenceOutputs(outputs=map(_output_to_proto, outputs), free=free))


def _output_to_proto(output: Output) -> pb.SequenceOutput:
    return pb.SequenceOutput(
        request_id=output.request_id,
        token_ids=[] if output.token is None else [output.token],
        finish_reason=codec.finish_to_proto(output.finish_reason),
        stop_token_id=output.stop_token_id,
        error=output.error,
        preempted=output.preempted,
        num_cached_tokens=output.num_cached_tokens,
        num_degraded_tokens=output.num_degraded,
        logprobs=[codec.logprobs_to_proto(output.logprobs)] if output.logprobs else [],
        prompt_logprobs=map(codec.logprobs_to_proto, output.prompt_logprobs),
    )


def credits_to_proto(limits: AttentionConfig) -> pb.Credits:
    return pb.Credits(
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        max_num_seqs=limits.max_num_seqs,
        max_step_tokens=limits.max_step_tokens,
    )


def free_credits(engine: Engine) -> pb.FreeCredits:
    """What the worker can take now."""
    scheduler = engine.scheduler
    return pb.FreeCredits(
        num_free_blocks=scheduler.tables.pool.num_free,
        num_free_seqs=scheduler.limits.max_num_seqs - scheduler.num_running,
        num_admitted=engine.num_admitted,
        num_pending_tokens=scheduler.num_pending_tokens,
    )


def events_message(events: Seq[CacheEvent]) -> pb.WorkerMessage:
    return pb.WorkerMessage(kv_events=pb.KvEvents(events=map(_event_to_proto, events)))


def _event_to_proto(event: CacheEvent) -> pb.KvEvent:
    match event:
        case Stored(hash, parent, token_ids):
            return pb.KvEvent(stored=pb.KvBlock(hash=hash, parent=parent, token_ids=token_ids))
        case Removed(hash):
            return pb.KvEvent(removed=hash)
    return pb.KvEvent(cleared=True)
