"""What a request asks of the sampler, and the checks on it. Pure; shared by router and attention worker."""

from dataclasses import dataclass
from enum import Enum

from moonshard.errors import RequestError

MAX_STOP_TOKEN_IDS = 64
MAX_STOP_TEXTS = 16
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_LOGIT_BIAS = 1024


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"


class ConstraintKind(Enum):
    """What `Constraint.value` is written in."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    EBNF = "ebnf"
    CHOICE = "choice"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the output must be. value: the text of its kind, empty for JSON_OBJECT; choices: of CHOICE only.

    from_first_token: else, where the prompt leaves a thought open, in force from the end of the thought.
    """

    kind: ConstraintKind
    value: str = ""
    choices: tuple[str, ...] = ()
    from_first_token: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One position's log-probabilities after penalties and bias, before temperature and truncation.

    top: the likeliest tokens with theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Defaults are those published for K2.5's thinking mode (specification 5.6).

    temperature: 0 is greedy. top_k: 0 is off. min_p: share of the likeliest token's probability, 0 is off.
    max_tokens: tokens to generate at most. min_tokens: no end-of-turn or stop token before. seed: None draws one;
    the same seed and prompt give the same tokens whatever else runs. stop: texts that end the output, kept in it when
    include_stop. logprobs, prompt_logprobs: None is off, else how many of the likeliest tokens come with each. n:
    independent continuations, the router's business. logit_bias: (token id, added to its logit).
    """

    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        _require(0.0 <= self.temperature <= 2.0, "temperature", "must be in [0, 2]", self.temperature)
        _require(0.0 < self.top_p <= 1.0, "top_p", "must be in (0, 1]", self.top_p)
        _require(0 <= self.top_k <= 2**31 - 1, "top_k", "must be 0 (off) or positive", self.top_k)
        _require(0.0 <= self.min_p <= 1.0, "min_p", "must be in [0, 1]", self.min_p)
        for field in ("frequency_penalty", "presence_penalty"):
            _require(-2.0 <= getattr(self, field) <= 2.0, field, "must be in [-2, 2]", getattr(self, field))
        _require(
            0.0 < self.repetition_penalty <= 2.0, "repetition_penalty", "must be in (0, 2]", self.repetition_penalty
        )
        for token_id, bias in self.logit_bias:
            _require(-100.0 <= bias <= 100.0, f"logit_bias[{token_id}]", "must be in [-100, 100]", bias)
        _at_most(MAX_LOGIT_BIAS, "logit_bias", len(self.logit_bias))
        if self.seed is not None:
            _require(0 <= self.seed < 2**64, "seed", "must fit 64 unsigned bits", self.seed)
        _require(1 <= self.n <= MAX_CHOICES, "n", f"must be in 1..{MAX_CHOICES}", self.n)
        self._check_lengths()
        for field in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, field)) is not None:
                _require(0 <= value <= MAX_LOGPROBS, field, f"must be in 0..{MAX_LOGPROBS}", value)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", "must be at least 1", self.max_tokens)
            _require(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                f"must be at most max_tokens = {self.max_tokens}",
                self.min_tokens,
            )
        _require(self.min_tokens >= 0, "min_tokens", "must not be negative", self.min_tokens)
        _at_most(MAX_STOP_TOKEN_IDS, "stop_token_ids", len(self.stop_token_ids))
        _at_most(MAX_STOP_TEXTS, "stop", len(self.stop))
        _require(all(self.stop), "stop", "must not hold an empty text", list(self.stop))


def _at_most(limit: int, field: str, found: int) -> None:
    _require(found <= limit, field, f"must be at most {limit}", found)


def _require(holds: bool, field: str, rule: str, found: object) -> None:
    # Written as `holds`, not as its negation, so that NaN fails every rule.
    if not holds:
        raise RequestError(field, f"{rule}, got {found}")
