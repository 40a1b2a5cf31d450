"""One sequence on its way through the attention worker."""

from dataclasses import dataclass, field

from moonshard.sampling import FinishReason, SamplingParams


@dataclass(slots=True)
class Sequence:
    """Prompt, what was generated, and how much of both is in the KV cache.

    tokens: prompt and generated ids. num_computed_tokens: how many of them have their latents in the cache; the
    last token is never computed before the step that samples its successor.
    """

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    tokens: list[int] = field(init=False)
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def num_pending(self) -> int:
        """Tokens that the next steps have to run: the rest of the prompt, or one."""
        return len(self.tokens) - self.num_computed_tokens

    @property
    def max_len(self) -> int:
        assert self.sampling.max_tokens is not None, "the router resolves max_tokens"
        return len(self.prompt) + self.sampling.max_tokens

    def append(self, token: int) -> None:
        """Take a sampled token and decide whether the sequence is over."""
        self.tokens.append(token)
        if token in self.sampling.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.tokens) >= self.max_len:
            self.finish_reason = FinishReason.LENGTH
