"""News of a sequence become its output, its times and its figures. Decides whether it is over; acts on nothing."""

from enum import Enum

from moonshard.errors import Unavailable
from moonshard.router.flight import Flight, SequenceUpdate
from moonshard.router.metrics import ERROR, RouterMetrics
from moonshard.sampling import FinishReason


class Fate(Enum):
    """What news mean for the sequence. CUT: a stop text was found, and the worker does not know that it is over."""

    RUNS = "runs"
    CUT = "cut"
    OVER = "over"
    PREEMPTED = "preempted"


class Delivery:
    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics

    def deliver(self, flight: Flight, update: SequenceUpdate, now_s: float) -> Fate:
        """Give the flight's output what came; of a sequence that is over the end too."""
        if update.token_ids:
            self._take_tokens(flight, update, now_s)
        flight.answer.num_degraded += update.num_degraded
        fate = self._fate(flight, update, now_s)
        flight.answer.touch(flight.choice)
        return fate

    def _fate(self, flight: Flight, update: SequenceUpdate, now_s: float) -> Fate:
        if flight.output.stop_text is not None:
            self._finish(flight, FinishReason.STOP, None, now_s)
            return Fate.OVER if update.finish_reason or update.error or update.preempted else Fate.CUT
        if update.error:
            flight.answer.fail(Unavailable(f"attention-{flight.rank}: {update.error}"))
            flight.end = ERROR
            return Fate.OVER
        if update.finish_reason is not None:
            self._finish(flight, update.finish_reason, update.stop_token_id, now_s)
            return Fate.OVER
        return Fate.PREEMPTED if update.preempted else Fate.RUNS

    def _take_tokens(self, flight: Flight, update: SequenceUpdate, now_s: float) -> None:
        prompt_logprobs = update.prompt_logprobs
        if not flight.num_generated:
            flight.num_cached_tokens = update.num_cached_tokens
            flight.first_token_s = flight.last_token_s = now_s
            self._metrics.first_token(flight, now_s)
        else:
            prompt_logprobs = ()  # told already, before the sequence was preempted
        num_taken = flight.output.push(update.token_ids, update.logprobs, prompt_logprobs, update.stop_token_id)
        self._metrics.tokens(flight, num_taken, now_s)
        flight.num_generated += num_taken
        flight.last_token_s = now_s

    def _finish(self, flight: Flight, reason: FinishReason, stop_token_id: int | None, now_s: float) -> None:
        finish = flight.finish(reason, stop_token_id)
        flight.output.finish(finish)
        flight.end = reason.value
        self._metrics.finished(flight, finish, now_s)
