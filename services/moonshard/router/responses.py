"""What was generated, as Inference's messages."""

from typing import Any

from moonshard.router.answer import Answer
from moonshard.router.output import ChoiceDelta
from moonshard.router.requests import Finish
from moonshard.rpc.codec import finish_to_proto, logprobs_to_proto
from moonshard.v1 import inference_pb2 as pb

# Trailing metadata of a call whose answer is not what the whole model would say: tokens that lacked experts.
DEGRADED_TOKENS = "moonshard-degraded-tokens"


def flag_degraded(context: Any, answer: Answer) -> None:
    """In the call's trailing metadata, where the operator allows answers without all experts and this one is such."""
    if answer.num_degraded:
        context.set_trailing_metadata(((DEGRADED_TOKENS, str(answer.num_degraded)),))


def generate_response(request_id: str, delta: ChoiceDelta) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        request_id=request_id,
        text=delta.text,
        token_ids=delta.token_ids,
        finish=finish_message(delta.finish) if delta.finish else None,
        choice=delta.choice,
        logprobs=map(logprobs_to_proto, delta.logprobs),
        prompt_logprobs=map(logprobs_to_proto, delta.prompt_logprobs),
    )


def finish_message(finish: Finish) -> pb.Finish:
    timings = finish.timings
    usage = pb.Usage(
        prompt_tokens=finish.num_prompt_tokens,
        completion_tokens=finish.num_completion_tokens,
        cached_tokens=finish.num_cached_tokens,
    )
    return pb.Finish(
        reason=finish_to_proto(finish.reason),
        stop_token_id=finish.stop_token_id,
        usage=usage,
        timings=pb.Timings(queue_s=timings.queue_s, prefill_s=timings.prefill_s, decode_s=timings.decode_s),
        stop_text=finish.stop_text,
    )
