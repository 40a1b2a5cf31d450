"""What a request asks of the sampler, and the checks on it. Pure; shared by router and attention worker."""

from dataclasses import dataclass
from enum import Enum

from moonshard.errors import RequestError

MAX_STOP_TOKEN_IDS = 64


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Defaults are those published for K2.5's thinking mode (specification 5.6).

    temperature: 0 is greedy. top_k: 0 is off. max_tokens: tokens to generate at most.
    seed: None draws one; the same seed and prompt give the same tokens whatever else runs.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require(0.0 <= self.temperature <= 2.0, "temperature", "must be in [0, 2]", self.temperature)
        _require(0.0 < self.top_p <= 1.0, "top_p", "must be in (0, 1]", self.top_p)
        _require(0 <= self.top_k <= 2**31 - 1, "top_k", "must be 0 (off) or positive", self.top_k)
        if self.seed is not None:
            _require(0 <= self.seed < 2**64, "seed", "must fit 64 unsigned bits", self.seed)
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", "must be at least 1", self.max_tokens)
        _require(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            "stop_token_ids",
            f"must be at most {MAX_STOP_TOKEN_IDS}",
            len(self.stop_token_ids),
        )


def _require(holds: bool, field: str, rule: str, found: object) -> None:
    # Written as `holds`, not as its negation, so that NaN fails every rule.
    if not holds:
        raise RequestError(field, f"{rule}, got {found}")
