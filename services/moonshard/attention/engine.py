"""The attention worker's iteration: schedule, run, postprocess."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from moonshard.attention.runner import Runner
from moonshard.attention.sampler import sample
from moonshard.attention.scheduler import Scheduler, StepPlan
from moonshard.attention.sequence import Sequence
from moonshard.errors import RequestError
from moonshard.sampling import FinishReason


@dataclass(frozen=True, slots=True)
class Output:
    """What a step produced for one request. finish_reason or error set: it is over and its blocks are free."""

    request_id: str
    token: int | None = None
    finish_reason: FinishReason | None = None
    error: str = ""


class Engine:
    """Not thread-safe: one thread admits, aborts and steps."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    def admit(self, sequences: Seq[Sequence]) -> list[Output]:
        """Let sequences join; returns the refusals."""
        refusals = []
        for sequence in sequences:
            try:
                self.scheduler.add(sequence)
            except RequestError as error:
                refusals.append(Output(sequence.request_id, error=str(error)))
        return refusals

    def abort(self, request_ids: Seq[str]) -> None:
        for request_id in request_ids:
            self.scheduler.remove(request_id)

    def plan(self) -> StepPlan:
        return self.scheduler.schedule()

    def step(self, plan: StepPlan) -> list[Output]:
        """Run one iteration; returns a token for each sequence whose pending tokens ended in it."""
        logits_NV = self.runner.run(plan)
        self.scheduler.commit(plan)
        self.num_steps += 1
        self.num_prompt_tokens += sum(chunk.length for chunk in plan.prefills)
        sequences = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        return self._postprocess(sequences, logits_NV)

    def _postprocess(self, sequences: list[Sequence], logits_NV: torch.Tensor) -> list[Output]:
        finite_N = logits_NV.isfinite().all(dim=-1).tolist()
        tokens = sample(logits_NV, [s.sampling for s in sequences], [len(s.tokens) for s in sequences])
        return [
            self._take(sequence, token) if finite else self._fail(sequence)
            for sequence, token, finite in zip(sequences, tokens, finite_N, strict=True)
        ]

    def _take(self, sequence: Sequence, token: int) -> Output:
        self.num_generated_tokens += 1
        sequence.append(token)
        if sequence.finish_reason:
            self.scheduler.remove(sequence.request_id)
        return Output(sequence.request_id, token, sequence.finish_reason)

    def _fail(self, sequence: Sequence) -> Output:
        """NaN or infinity came out of the model: a token drawn from it would look like an answer."""
        self.scheduler.remove(sequence.request_id)
        return Output(sequence.request_id, error=f"non-finite logits at token {len(sequence.tokens)}")
