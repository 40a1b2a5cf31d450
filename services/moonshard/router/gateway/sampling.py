"""The gateways' sampling parameters to ours. Pure."""

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from moonshard.errors import RequestError
from moonshard.sampling import Constraint, ConstraintKind, SamplingParams

SEEDS = 2**64

_KINDS = {
    "json_schema": ConstraintKind.JSON_SCHEMA,
    "regex": ConstraintKind.REGEX,
    "grammar": ConstraintKind.EBNF,
    "structural_tag": ConstraintKind.STRUCTURAL_TAG,
}


def sampling_of(message: pb.SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """A number that has no "unset" on this wire is unset when it is 0 and 0 means nothing. Raises RequestError."""
    return SamplingParams(
        temperature=message.temperature if message.HasField("temperature") else defaults.temperature,
        top_p=message.top_p or defaults.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        repetition_penalty=message.repetition_penalty or 1.0,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        # Negative seeds are seeds too.
        seed=message.seed % SEEDS if message.HasField("seed") else None,
        n=message.n or 1,
        max_tokens=message.max_tokens or None,
        min_tokens=message.min_tokens,
        stop=tuple(message.stop),
        include_stop=message.include_stop_str_in_output,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        constraint=_constraint(message),
    )


def _constraint(message: pb.SamplingParams) -> Constraint | None:
    kind = message.WhichOneof("constraint")
    first = message.grammar_from_first_token
    if kind is None or (kind == "json_object" and not message.json_object):
        return None
    if kind == "json_object":
        return Constraint(ConstraintKind.JSON_OBJECT, from_first_token=first)
    if kind == "choice":
        return Constraint(ConstraintKind.CHOICE, choices=tuple(message.choice.choices), from_first_token=first)
    if kind not in _KINDS:
        raise RequestError("constraint", f"{kind} is not served here")
    return Constraint(_KINDS[kind], getattr(message, kind), from_first_token=first)
