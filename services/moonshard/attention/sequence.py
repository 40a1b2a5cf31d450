"""One sequence on its way through the attention worker."""

from dataclasses import dataclass, field

from moonshard.attention.guide import Guide
from moonshard.attention.penalties import Penalties
from moonshard.attention.prefix_hashes import Digest, Salts
from moonshard.errors import RequestError
from moonshard.sampling import FinishReason, SamplingParams, TokenLogprobs


@dataclass(slots=True)
class Sequence:
    """Prompt, what was generated, and how much of both is in the KV cache.

    output: generated before, by a worker that lost or preempted the sequence. guide: where a grammar binds the output.
    awaits_grammar: it is still being compiled, and until then the sequence takes part in no step (`grammar_desk`).
    traced: its routing is told to the router. tokens: prompt and generated ids. num_computed_tokens: how many of them
    have their latents in the cache; the last token is never computed before the step that samples its successor.
    num_cached_tokens: those that were found there. digests: names of the full blocks. number: place in the order of
    admission, set by the scheduler. num_degraded: tokens that ran without all of their experts; what is in the cache
    since then is for nobody else.
    """

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    output: list[int] = field(default_factory=list)
    guide: Guide | None = None
    awaits_grammar: bool = False
    traced: bool = False
    salts: Salts = field(default_factory=dict)
    tokens: list[int] = field(init=False)
    penalties: Penalties | None = field(init=False)
    scores_prompt: bool = field(init=False)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)
    number: int = -1
    num_degraded: int = 0
    num_degraded_told: int = 0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None

    def __post_init__(self) -> None:
        self.tokens = self.prompt + self.output
        self.penalties = Penalties.of(self.sampling, self.prompt, self.output)
        # Prompt log-probabilities go with the first token: who has some output has them as well.
        self.scores_prompt = self.sampling.prompt_logprobs is not None and not self.output
        if self.guide:
            self.follow(self.guide)

    def follow(self, guide: Guide) -> None:
        """Bind the output to a grammar. Raises RequestError when what there is of it does not fit."""
        for token in self.output:
            guide.accept(token)
        self.guide = guide

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

    @property
    def must_go_on(self) -> bool:
        """Whether it may not stop yet."""
        return self.num_generated < self.sampling.min_tokens

    def append(self, token: int) -> None:
        """Take a sampled token and decide whether the sequence is over. RequestError: its grammar cannot follow."""
        self.tokens.append(token)
        if self.penalties:
            self.penalties.add(token)
        if token in self.sampling.stop_token_ids or (self.guide and self._ends_grammar(self.guide, token)):
            self.finish_reason, self.stop_token_id = FinishReason.STOP, token
        elif len(self.tokens) >= self.max_len:
            self.finish_reason = FinishReason.LENGTH

    @staticmethod
    def _ends_grammar(guide: Guide, token: int) -> bool:
        """Whether nothing more may follow: the end of a turn was drawn though the request ignores it."""
        was_complete = guide.is_complete
        guide.accept(token)
        return was_complete and guide.is_complete


def check_ids(sequence: Sequence, vocab_size: int) -> None:
    """Raises RequestError for a token id outside the vocabulary: it would index past a tensor's end."""
    sampling = sequence.sampling
    biased = [token for token, _ in sampling.logit_bias]
    for field_name, ids in (
        ("prompt_token_ids", sequence.prompt),
        ("output_token_ids", sequence.output),
        ("stop_token_ids", sampling.stop_token_ids),
        ("logit_bias", biased),
    ):
        if wrong := [token for token in ids if not 0 <= token < vocab_size]:
            raise RequestError(field_name, f"token ids must be in 0..{vocab_size - 1}, got {wrong[0]}")
