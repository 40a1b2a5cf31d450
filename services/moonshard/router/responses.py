"""What was generated, as Inference's messages. Pure."""

from moonshard.router.output import ChoiceDelta
from moonshard.router.requests import Finish
from moonshard.rpc.codec import finish_to_proto, logprobs_to_proto
from moonshard.v1 import inference_pb2 as pb


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
