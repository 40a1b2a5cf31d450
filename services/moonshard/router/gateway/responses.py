"""Deltas of an answer as the gateways' messages. Pure.

As vLLM does it: a stream is chunks of new ids and, per choice, a closing message with all of them; without a stream
there is only the closing message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from moonshard.router.output import ChoiceDelta
from moonshard.router.requests import Finish
from moonshard.sampling import TokenLogprobs


@dataclass(slots=True)
class _Choice:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class Responses:
    """One answer. stop_token_ids: those the client named; an end-of-turn token is no match to tell of."""

    def __init__(self, prompt_token_ids: Sequence[int], is_stream: bool, stop_token_ids: Sequence[int]) -> None:
        self._prompt = prompt_token_ids
        self._is_stream = is_stream
        self._stop_token_ids = frozenset(stop_token_ids)
        self._choices: dict[int, _Choice] = {}

    def of(self, delta: ChoiceDelta) -> Iterator[pb.GenerateResponse]:
        """The messages for what is new."""
        choice = self._choices.setdefault(delta.choice, _Choice())
        choice.token_ids += delta.token_ids
        if self._is_stream:
            if delta.token_ids:
                yield pb.GenerateResponse(chunk=self._chunk(delta, choice))
        else:
            choice.logprobs += delta.logprobs
            choice.prompt_logprobs += delta.prompt_logprobs
        if delta.finish:
            yield pb.GenerateResponse(complete=self._complete(delta.choice, choice, delta.finish))

    def _chunk(self, delta: ChoiceDelta, choice: _Choice) -> pb.GenerateStreamChunk:
        return pb.GenerateStreamChunk(
            token_ids=delta.token_ids,
            prompt_tokens=len(self._prompt),
            completion_tokens=len(choice.token_ids),
            cached_tokens=delta.finish.num_cached_tokens if delta.finish else 0,
            output_logprobs=_output(delta.logprobs),
            input_logprobs=_input(self._prompt, delta.prompt_logprobs),
            index=delta.choice,
        )

    def _complete(self, index: int, choice: _Choice, finish: Finish) -> pb.GenerateComplete:
        named = finish.stop_token_id in self._stop_token_ids
        return pb.GenerateComplete(
            output_ids=choice.token_ids,
            finish_reason=finish.reason.value,
            prompt_tokens=finish.num_prompt_tokens,
            completion_tokens=finish.num_completion_tokens,
            cached_tokens=finish.num_cached_tokens,
            output_logprobs=_output(choice.logprobs),
            input_logprobs=_input(self._prompt, choice.prompt_logprobs),
            index=index,
            matched_token_id=finish.stop_token_id if named else None,
            matched_stop_str=finish.stop_text,
        )


def _output(logprobs: Sequence[TokenLogprobs]) -> pb.OutputLogProbs | None:
    if not logprobs:
        return None
    return pb.OutputLogProbs(
        token_logprobs=[found.logprob for found in logprobs],
        token_ids=[found.token_id for found in logprobs],
        top_logprobs=map(_top, logprobs),
    )


def _input(prompt: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> pb.InputLogProbs | None:
    """The first token of a prompt has no log-probability: an empty entry stands for it."""
    if not logprobs:
        return None
    values = [pb.InputTokenLogProb(value=found.logprob) for found in logprobs]
    return pb.InputLogProbs(
        token_logprobs=[pb.InputTokenLogProb(), *values],
        token_ids=[prompt[0], *(found.token_id for found in logprobs)],
        top_logprobs=[pb.TopLogProbs(), *map(_top, logprobs)],
    )


def _top(found: TokenLogprobs) -> pb.TopLogProbs:
    return pb.TopLogProbs(
        values=[logprob for _, logprob in found.top], token_ids=[token_id for token_id, _ in found.top]
    )
