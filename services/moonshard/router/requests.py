"""A request as the router keeps it, and the checks that every request passes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moonshard.errors import RequestError
from moonshard.sampling import MAX_STOP_TOKEN_IDS, FinishReason, SamplingParams

MAX_REQUEST_ID_LENGTH = 128
SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Limits:
    """What this cell can serve. kv_capacity: tokens that the largest attention worker's KV cache holds."""

    vocab_size: int
    max_position_embeddings: int
    kv_capacity: int
    default_max_tokens: int
    eos_token_ids: tuple[int, ...]

    @property
    def max_model_len(self) -> int:
        """Prompt and completion together, tokens."""
        return min(self.max_position_embeddings, self.kv_capacity)

    def describe(self) -> str:
        return (
            f"this cell's limit of {self.max_model_len} tokens "
            f"(context window {self.max_position_embeddings}, KV cache {self.kv_capacity})"
        )


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint as the grammar engine reads it.

    after_token_id: in force from behind this token's first occurrence in the output; None: at once.
    """

    text: str
    after_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """sampling: resolved, so max_tokens and seed are set and stop_token_ids holds the end-of-turn ids too.

    tenant: who pays in the fair queue. priority: higher goes first. deadline_s: on the engine's clock.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float
    tenant: str = ""
    priority: int = 0
    deadline_s: float | None = None
    grammar: Grammar | None = None
    traced: bool = False

    @property
    def max_tokens(self) -> int:
        assert self.sampling.max_tokens is not None, "make_request resolves max_tokens"
        return self.sampling.max_tokens

    @property
    def max_len(self) -> int:
        """Tokens of KV cache that one sequence of the request may come to need."""
        return len(self.prompt_token_ids) + self.max_tokens

    def choices(self) -> list["Request"]:
        """One request per continuation: choice i draws with seed + i, which none of them shares."""
        sampling = self.sampling
        assert sampling.seed is not None, "make_request resolves the seed"
        seeds = [(sampling.seed + choice) % SEEDS for choice in range(sampling.n)]
        return [replace(self, sampling=replace(sampling, n=1, seed=seed)) for seed in seeds]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: received to admitted, admitted to first token, first token to last."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Finish:
    """How a choice ended well. num_cached_tokens: of the prompt, found in the prefix cache."""

    reason: FinishReason
    stop_token_id: int | None
    num_prompt_tokens: int
    num_completion_tokens: int
    timings: Timings
    num_cached_tokens: int = 0
    stop_text: str | None = None


def make_request(
    request_id: str,
    prompt_token_ids: Sequence[int],
    sampling: SamplingParams,
    limits: Limits,
    arrival_s: float,
    seed: int,
    tenant: str = "",
    priority: int = 0,
    deadline_s: float | None = None,
    grammar: Grammar | None = None,
) -> Request:
    """Check a request and fill in what it left open; `seed` is taken when it names none.

    Raises RequestError naming the field, the limit and what was found.
    """
    _check_id(request_id)
    _check_tokens("token_ids", prompt_token_ids, limits.vocab_size)
    _check_tokens("stop_token_ids", sampling.stop_token_ids, limits.vocab_size)
    resolved = replace(
        sampling,
        max_tokens=_resolve_max_tokens(len(prompt_token_ids), sampling.max_tokens, limits),
        seed=seed if sampling.seed is None else sampling.seed,
        stop_token_ids=_resolve_stops(sampling, limits.eos_token_ids),
    )
    return Request(request_id, tuple(prompt_token_ids), resolved, arrival_s, tenant, priority, deadline_s, grammar)


def _check_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID_LENGTH:
        raise RequestError("request_id", f"must have at most {MAX_REQUEST_ID_LENGTH} characters, got {len(request_id)}")
    if not request_id.isprintable():
        raise RequestError("request_id", f"must be printable, got {request_id!r}")


def _check_tokens(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    for position, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"{field}[{position}]", f"token id must be in 0..{vocab_size - 1}, got {token_id}")


def _resolve_max_tokens(num_prompt: int, max_tokens: int | None, limits: Limits) -> int:
    if num_prompt == 0:
        raise RequestError("prompt", "must not be empty: it has 0 tokens")
    room = limits.max_model_len - num_prompt
    if room < 1:
        raise RequestError("prompt", f"{num_prompt} tokens leave no room for one more within {limits.describe()}")
    if max_tokens is None:
        return min(limits.default_max_tokens, room)
    if max_tokens > room:
        raise RequestError(
            "max_tokens", f"prompt of {num_prompt} + max_tokens of {max_tokens} tokens exceed {limits.describe()}"
        )
    return max_tokens


def _resolve_stops(sampling: SamplingParams, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    if sampling.ignore_eos:
        return sampling.stop_token_ids
    stops = tuple(dict.fromkeys(sampling.stop_token_ids + eos_token_ids))
    if len(stops) > MAX_STOP_TOKEN_IDS:
        raise RequestError(
            "stop_token_ids",
            f"must be at most {MAX_STOP_TOKEN_IDS} with the {len(eos_token_ids)} end-of-turn ids, got {len(stops)}",
        )
    return stops
