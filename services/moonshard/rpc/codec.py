"""Messages of the contracts to domain values and back. Domain values cross this border and no other."""

from collections.abc import Iterable
from typing import Any

from moonshard.errors import RequestError
from moonshard.sampling import Constraint, ConstraintKind, FinishReason, SamplingParams, TokenLogprobs
from moonshard.v1 import inference_pb2 as pb

_OPTIONAL_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
)

_TO_WIRE = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_FROM_WIRE = {number: reason for reason, number in _TO_WIRE.items()}


def sampling_from_proto(message: pb.SamplingParams, defaults: SamplingParams | None = None) -> SamplingParams:
    """Unset fields take `defaults` (SamplingParams' own when None). Raises RequestError naming the field."""
    defaults = defaults or SamplingParams()
    values: dict[str, Any] = {
        name: getattr(message if message.HasField(name) else defaults, name)  # type: ignore[arg-type]
        for name in _OPTIONAL_FIELDS
    }
    return SamplingParams(
        **values,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        stop=tuple(message.stop),
        include_stop=message.include_stop,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        constraint=_constraint_from_proto(message.constraint) if message.HasField("constraint") else None,
    )


def sampling_to_proto(params: SamplingParams) -> pb.SamplingParams:
    """None stays unset."""
    return pb.SamplingParams(
        **{name: getattr(params, name) for name in _OPTIONAL_FIELDS},
        logit_bias=dict(params.logit_bias),
        stop=params.stop,
        include_stop=params.include_stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        constraint=_constraint_to_proto(params.constraint) if params.constraint else None,
    )


def _constraint_from_proto(message: pb.Constraint) -> Constraint:
    kind = message.WhichOneof("kind")
    if kind is None or (kind == "json_object" and not message.json_object):
        raise RequestError("constraint", "is set but names no kind")
    return Constraint(
        kind=ConstraintKind(kind),
        value="" if kind in ("json_object", "choice") else getattr(message, kind),
        choices=tuple(message.choice.values),
        from_first_token=message.from_first_token,
    )


def _constraint_to_proto(constraint: Constraint) -> pb.Constraint:
    value: Any = constraint.value
    if constraint.kind is ConstraintKind.JSON_OBJECT:
        value = True
    elif constraint.kind is ConstraintKind.CHOICE:
        value = pb.Choice(values=constraint.choices)
    return pb.Constraint(**{constraint.kind.value: value}, from_first_token=constraint.from_first_token)


def logprobs_to_proto(found: TokenLogprobs) -> pb.TokenLogprobs:
    top = [pb.TopLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in found.top]
    return pb.TokenLogprobs(token_id=found.token_id, logprob=found.logprob, top=top)


def logprobs_from_proto(message: pb.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(message.token_id, message.logprob, tuple((top.token_id, top.logprob) for top in message.top))


def finish_to_proto(reason: FinishReason | None) -> pb.FinishReason.ValueType:
    return _TO_WIRE[reason]


def finish_from_proto(number: pb.FinishReason.ValueType) -> FinishReason | None:
    """None when unspecified. Raises RequestError for a number of a newer contract."""
    if number not in _FROM_WIRE:
        raise RequestError("finish_reason", f"unknown value {number}")
    return _FROM_WIRE[number]


def messages_to_dicts(messages: Iterable[pb.Message]) -> list[dict[str, Any]]:
    """Messages as the chat template reads them (OpenAI's shape); fields that are not set are left out."""
    return [_message_to_dict(message) for message in messages]


def _message_to_dict(message: pb.Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.content if message.HasField("content") else None}
    if message.name:
        found["name"] = message.name
    if message.HasField("reasoning_content"):
        found["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        found["tool_calls"] = [_tool_call_to_dict(call) for call in message.tool_calls]
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    return found


def _tool_call_to_dict(call: pb.ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
