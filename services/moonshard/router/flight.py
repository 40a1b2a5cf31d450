"""One sequence between submission and end: a choice of a request, its place in the cell, and its times."""

from collections.abc import Sequence
from dataclasses import dataclass

from moonshard.router.answer import Answer
from moonshard.router.output import ChoiceOutput
from moonshard.router.requests import Finish, Request, Timings
from moonshard.sampling import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class SequenceUpdate:
    """News of one sequence from its worker. finish_reason or error set: it is over and its blocks are free.

    preempted: its blocks are free and it is the router's again. num_cached_tokens: of its prompt, with the first news.
    num_degraded: its tokens that ran without all of their experts since the last news.
    """

    sequence_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str = ""
    preempted: bool = False
    num_cached_tokens: int = 0
    num_degraded: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(slots=True)
class Flight:
    """request: of this choice alone. sequence_id: its name on the wire, never used twice.

    The caller's id may come back at once after an abort, while tokens of its former life are still on their way.
    prefill_tokens: what its unfinished prompt counts in the worker's prefill budget. end: how it ended, for metrics.
    num_losses: attention workers that died under it.
    """

    request: Request
    sequence_id: str
    answer: Answer
    choice: int
    rank: int | None = None
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    num_generated: int = 0
    num_cached_tokens: int = 0
    prefill_tokens: int = 0
    num_losses: int = 0
    prefix_hashes: Sequence[int] | None = None
    end: str = ""

    @property
    def output(self) -> ChoiceOutput:
        return self.answer.outputs[self.choice]

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.request.prompt_token_ids) + len(self.output.token_ids)

    @property
    def all_token_ids(self) -> Sequence[int]:
        return (*self.request.prompt_token_ids, *self.output.token_ids)

    def finish(self, reason: FinishReason, stop_token_id: int | None) -> Finish:
        """How it ends, with its usage and times."""
        first_s = self.first_token_s or self.admitted_s
        timings = Timings(
            queue_s=self.admitted_s - self.request.arrival_s,
            prefill_s=first_s - self.admitted_s,
            decode_s=max(self.last_token_s - first_s, 0.0),
        )
        return Finish(
            reason,
            stop_token_id,
            len(self.request.prompt_token_ids),
            self.num_generated,
            timings,
            self.num_cached_tokens,
            self.output.stop_text,
        )
