"""The attention worker's iteration: schedule, run, postprocess."""

import math
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from moonshard.attention.plan import StepPlan
from moonshard.attention.runner import Runner
from moonshard.attention.sampler import Choice, sample
from moonshard.attention.scheduler import Scheduler
from moonshard.attention.sequence import Sequence, check_ids
from moonshard.errors import RequestError
from moonshard.sampling import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Output:
    """What a step produced for one request.

    finish_reason or error set: it is over and its blocks are free. preempted: its blocks are free and it is the
    router's again. num_cached_tokens and prompt_logprobs come with the first token. num_degraded: tokens of the request
    that ran without all of their experts since its last output.
    """

    request_id: str
    token: int | None = None
    finish_reason: FinishReason | None = None
    error: str = ""
    preempted: bool = False
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    num_degraded: int = 0


class Engine:
    """Not thread-safe: one thread admits, aborts and steps.

    lacking: rows of the step that has just run, in the plan's order, that some expert is missing from.
    """

    def __init__(
        self, scheduler: Scheduler, runner: Runner, lacking: Callable[[], Collection[int]] = frozenset
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.num_degraded_tokens = 0
        self._lacking = lacking
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_admitted = 0

    def admit(self, sequences: Seq[Sequence]) -> list[Output]:
        """Let sequences join; returns those that cannot, now or ever."""
        outputs = []
        for sequence in sequences:
            self.num_admitted += 1
            try:
                check_ids(sequence, self.runner.decoder.config.vocab_size)
                if not self.scheduler.add(sequence):
                    outputs.append(Output(sequence.request_id, preempted=True))
            except RequestError as error:
                outputs.append(Output(sequence.request_id, error=str(error)))
        return outputs

    def refuse(self, request_id: str, problem: str) -> Output:
        """Count a sequence of the router's that never became one here."""
        self.num_admitted += 1
        return Output(request_id, error=problem)

    def resume(self, sequence: Sequence, problem: str) -> list[Output]:
        """Its grammar is ready, or there is a problem with it; a sequence that has left meanwhile is passed over."""
        if not self.scheduler.runs(sequence):
            return []
        sequence.awaits_grammar = False
        return [self._fail(sequence, problem)] if problem else []

    def abort(self, request_ids: Seq[str]) -> None:
        for request_id in request_ids:
            self.scheduler.remove(request_id)

    def forget_everything(self) -> None:
        """As for a router that knows nothing of this worker: no sequence, no cached block, nothing admitted."""
        self.abort(self.scheduler.running_ids)
        self.scheduler.tables.flush()
        self.num_admitted = 0

    def plan(self) -> StepPlan:
        return self.scheduler.schedule()

    def step(self, plan: StepPlan) -> list[Output]:
        """Run one iteration: a token for each sequence whose pending tokens ended in it."""
        logits_NV = self.runner.run(plan)
        if rows := self._lacking():
            self._note_degraded(plan, rows)
        self.scheduler.commit(plan)
        self.num_steps += 1
        self.num_prompt_tokens += sum(chunk.length for chunk in plan.prefills)
        sequences = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        return [self._take(s, choice) for s, choice in zip(sequences, sample(logits_NV, sequences), strict=True)]

    def _note_degraded(self, plan: StepPlan, rows: Collection[int]) -> None:
        start = 0
        for chunk in plan.chunks:
            num_rows = sum(row in rows for row in range(start, start + chunk.length))
            chunk.sequence.num_degraded += num_rows
            self.num_degraded_tokens += num_rows
            start += chunk.length

    def _take(self, sequence: Sequence, choice: Choice) -> Output:
        if choice.error:
            return self._fail(sequence, choice.error)
        if not all(math.isfinite(scored.logprob) for scored in sequence.prompt_logprobs):
            return self._fail(sequence, "non-finite logits within the prompt")
        try:
            sequence.append(choice.token)
        except RequestError as error:
            return self._fail(sequence, str(error))
        self.num_generated_tokens += 1
        if sequence.finish_reason:
            self.scheduler.remove(sequence.request_id)
        return _output(sequence, choice)

    def _fail(self, sequence: Sequence, problem: str) -> Output:
        """A token drawn from NaN or infinity would look like an answer; nor may others read what led to it."""
        self.scheduler.remove(sequence.request_id, spoilt=True)
        return Output(sequence.request_id, error=problem)


def _output(sequence: Sequence, choice: Choice) -> Output:
    first = sequence.num_generated == 1
    num_degraded, sequence.num_degraded_told = sequence.num_degraded - sequence.num_degraded_told, sequence.num_degraded
    scores, sequence.prompt_logprobs = tuple(sequence.prompt_logprobs), []
    return Output(
        sequence.request_id,
        choice.token,
        sequence.finish_reason,
        stop_token_id=sequence.stop_token_id,
        num_cached_tokens=min(sequence.num_cached_tokens, len(sequence.prompt)) if first else 0,
        num_degraded=num_degraded,
        logprobs=choice.logprobs,
        prompt_logprobs=scores,
    )
