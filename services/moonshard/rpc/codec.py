"""Messages of the contracts to domain values and back. Domain values cross this border and no other."""

from collections.abc import Iterable
from typing import Any

from moonshard.errors import RequestError
from moonshard.sampling import FinishReason, SamplingParams
from moonshard.v1 import inference_pb2 as pb

_OPTIONAL_FIELDS = ("temperature", "top_p", "top_k", "seed", "max_tokens")

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
    return SamplingParams(**values, stop_token_ids=tuple(message.stop_token_ids), ignore_eos=message.ignore_eos)


def sampling_to_proto(params: SamplingParams) -> pb.SamplingParams:
    """None stays unset."""
    return pb.SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        seed=params.seed,
        max_tokens=params.max_tokens,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
    )


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
