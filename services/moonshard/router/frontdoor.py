"""Where every request enters, whatever API it came through: checked, queued, and answered as a stream of deltas.

Inference and the gateways' service are thin adapters over this. Knows nothing of gRPC.
"""

import itertools
import random
import secrets
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from moonshard.errors import Aborted, DeadlineExceeded, DuplicateRequest, MoonshardError, RequestError
from moonshard.router.answer import Answer
from moonshard.router.detokenizer import Detokenizer
from moonshard.router.engine import Engine
from moonshard.router.flight import Flight
from moonshard.router.metrics import RouterMetrics
from moonshard.router.output import ChoiceOutput
from moonshard.router.preparation import Preparation
from moonshard.router.requests import Grammar, Limits, Request, make_request
from moonshard.router.served_model import ServedModel
from moonshard.router.stop_texts import StopTexts
from moonshard.router.traces import TraceBook
from moonshard.rpc.caller import current_caller
from moonshard.sampling import Constraint, SamplingParams

# (constraint, whether the prompt leaves a thought open) -> what the worker's grammar engine reads; raises RequestError.
Grammars = Callable[[Constraint, bool], Grammar]


@dataclass(frozen=True)
class Submission:
    """A request as an adapter hands it in.

    request_id: "" makes one. tenant, priority, deadline_s: the current caller's unless given. tenant: who pays in the
    fair queue. priority: higher goes first within the tenant. deadline_s and arrival_s: on the engine's clock; no
    arrival is now. prompt_opens_thought: where a constraint waits for the end of the thought. grammar: of the
    constraint, where it has been made (`FrontDoor.grammar_of`); else `submit` makes it, which may take long.
    """

    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    request_id: str = ""
    tenant: str = ""
    priority: int = 0
    deadline_s: float | None = None
    prompt_opens_thought: bool = False
    arrival_s: float | None = None
    grammar: Grammar | None = None


def no_grammars(constraint: Constraint, prompt_opens_thought: bool) -> Grammar:
    raise RequestError("constraint", f"{constraint.kind.value} is not served here")


class FrontDoor:
    """limits: what the cell can serve, as it is now. Runs in the event loop's thread."""

    def __init__(
        self,
        model: ServedModel,
        engine: Engine,
        limits: Callable[[], Limits],
        metrics: RouterMetrics,
        clock: Callable[[], float],
        grammars: Grammars = no_grammars,
        traces: TraceBook | None = None,
        trace_share: float = 0.0,
    ) -> None:
        """trace_share: of requests whose routing is traced beside those that ask for it."""
        self.limits = limits
        self.clock = clock
        self._model = model
        self._engine = engine
        self._metrics = metrics
        self.preparation = Preparation()
        self._grammars = grammars
        self._answers: dict[str, Answer] = {}
        self._flights: dict[Answer, list[Flight]] = {}
        self._numbers = itertools.count()
        self._traces = traces
        self._trace_share = trace_share

    def grammar_of(self, sampling: SamplingParams, prompt_opens_thought: bool) -> Grammar | None:
        """What the constraint asks of the worker. May take long and may run in any thread. Raises RequestError."""
        return self._grammars(sampling.constraint, prompt_opens_thought) if sampling.constraint else None

    def check_open(self) -> None:
        """Raises Unavailable when no request would be taken now."""
        self._engine.check_open()

    @contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """Around all that may refuse a request, `submit` included: each refusal is counted once by its reason."""
        try:
            yield
        except MoonshardError as error:
            self._metrics.rejected(error)
            raise

    def submit(self, submission: Submission) -> Answer:
        """Check and queue. Raises RequestError, DuplicateRequest, Overloaded, DeadlineExceeded or Unavailable."""
        self.check_open()
        request = self._request(submission)
        if request.deadline_s is not None and request.deadline_s <= self.clock():
            raise DeadlineExceeded("the request's deadline had passed when it came")
        holder = self._answers.get(request.id)
        if holder is not None and holder.is_open:
            raise DuplicateRequest("request_id", f"{request.id!r} is in use")
        answer = Answer(
            request.id, [self._output(request, choice) for choice in range(request.sampling.n)], self._leave
        )
        flights = [
            Flight(part, f"{request.id}#{next(self._numbers)}", answer, choice)
            for choice, part in enumerate(request.choices())
        ]
        self._engine.submit(flights)
        if self._traces and request.traced:
            for flight in flights:
                self._traces.begin(flight.sequence_id, request.id, flight.choice)
        self._answers[request.id] = answer
        self._flights[answer] = flights
        if request.deadline_s is not None:
            answer.end_at(request.deadline_s - self.clock())
        return answer

    def abort(self, request_id: str) -> bool:
        """End a request on somebody's word: its caller meets Aborted. False when none of this id is open."""
        answer = self._answers.get(request_id)
        if answer is None or not answer.is_open:
            return False
        answer.fail(Aborted(f"request {request_id!r} was aborted"))
        answer.abandon()
        return True

    def _request(self, submission: Submission) -> Request:
        caller = current_caller()
        deadline_s = caller.deadline_s if submission.deadline_s is None else submission.deadline_s
        request = make_request(
            submission.request_id or uuid.uuid4().hex,
            submission.prompt_token_ids,
            submission.sampling,
            self.limits(),
            self.clock() if submission.arrival_s is None else submission.arrival_s,
            secrets.randbits(63),
            tenant=submission.tenant or caller.tenant,
            priority=submission.priority or caller.priority,
            deadline_s=deadline_s,
            grammar=submission.grammar or self.grammar_of(submission.sampling, submission.prompt_opens_thought),
        )
        is_traced = self._traces is not None and (caller.traced or random.random() < self._trace_share)
        return replace(request, traced=is_traced) if is_traced else request

    def _output(self, request: Request, choice: int) -> ChoiceOutput:
        sampling = request.sampling
        text = Detokenizer(self._model.tokenizer.stream(), self._model.eos_token_ids)
        return ChoiceOutput(choice, text, StopTexts(sampling.stop, sampling.include_stop), sampling.min_tokens)

    def _leave(self, answer: Answer) -> None:
        flights = self._flights.pop(answer, ())
        self._engine.abandon(flights)
        for flight in flights:
            if self._traces and flight.request.traced:
                self._traces.ended(flight.sequence_id)
        if self._answers.get(answer.request_id) is answer:
            del self._answers[answer.request_id]
