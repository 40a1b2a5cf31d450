"""One Chat call: what its request asks, as the front door takes it, and its deltas as the caller reads them."""

from collections.abc import Sequence

from moonshard.errors import RequestError
from moonshard.router.chat.call_reader import CallDelta, CallReader
from moonshard.router.chat.markers import Markers
from moonshard.router.chat.prompt import Prompt
from moonshard.router.chat.reply import ReplyParser
from moonshard.router.chat.tool_choice import Mode, ToolBinder, ToolChoice
from moonshard.router.chat.tools import Tool
from moonshard.router.chat.wire import choice_from_proto, conversation_from_proto, thinks
from moonshard.router.constraints import Grammars
from moonshard.router.detokenizer import Detokenizer
from moonshard.router.output import ChoiceDelta
from moonshard.router.requests import Finish, Grammar
from moonshard.router.responses import finish_message
from moonshard.router.served_model import ServedModel
from moonshard.rpc.codec import logprobs_to_proto, sampling_from_proto
from moonshard.sampling import FinishReason, SamplingParams
from moonshard.v1 import inference_pb2 as pb

# Specification 5.6. Thinking mode has SamplingParams' own defaults.
INSTANT_DEFAULTS = SamplingParams(temperature=0.6)


class Turns:
    """One per cell. `prepare` and `prompt` may take long and may run in any thread."""

    def __init__(self, model: ServedModel, grammars: Grammars, binder: ToolBinder) -> None:
        self._model = model
        self._grammars = grammars
        self._binder = binder
        self._markers = Markers.of(model.tokenizer)

    def prompt(self, request: pb.ChatRequest) -> Prompt:
        """Raises RequestError naming the field."""
        return self._model.prompts.write(conversation_from_proto(request))

    def prepare(self, request: pb.ChatRequest) -> "Turn":
        """Everything but the queue. Raises RequestError naming the field."""
        defaults = SamplingParams() if thinks(request) else INSTANT_DEFAULTS
        sampling = sampling_from_proto(request.sampling, defaults)
        if sampling.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs", "come with Generate only")
        conversation = conversation_from_proto(request)
        prompt = self._model.prompts.write(conversation)
        choice = choice_from_proto(request.tool_choice)
        sampling = self._binder.bind(sampling, conversation.tools, choice, prompt.opens_thought)
        grammar = self._grammars.grammar_of(sampling.constraint, prompt.opens_thought) if sampling.constraint else None
        tools = () if choice == ToolChoice(Mode.NONE) else conversation.tools
        parsers = [self._parser(prompt, tools, conversation.thinking) for _ in range(sampling.n)]
        return Turn(prompt, sampling, parsers, grammar)

    def _parser(self, prompt: Prompt, tools: Sequence[Tool], thinking: bool) -> ReplyParser:
        text = Detokenizer(self._model.tokenizer.stream(), self._model.eos_token_ids)
        calls = CallReader(tools, prompt.num_calls) if tools else None
        return ReplyParser(self._markers, text, prompt.opens_thought, thinking, calls)


class Turn:
    """parsers: one per choice. grammar: of the sampling's constraint."""

    def __init__(
        self, prompt: Prompt, sampling: SamplingParams, parsers: Sequence[ReplyParser], grammar: Grammar | None
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.grammar = grammar
        self._parsers = parsers

    def response(self, request_id: str, delta: ChoiceDelta) -> pb.ChatResponse:
        """The deltas of a choice must come in order."""
        parser = self._parsers[delta.choice]
        new = parser.push(delta)
        return pb.ChatResponse(
            request_id=request_id,
            token_ids=delta.token_ids,
            choice=delta.choice,
            reasoning_content=new.reasoning,
            content=new.content,
            tool_calls=map(_call_message, new.calls),
            logprobs=map(logprobs_to_proto, delta.logprobs),
            finish=_finish_message(delta.finish, parser) if delta.finish else None,
        )


def _call_message(call: CallDelta) -> pb.ToolCallDelta:
    return pb.ToolCallDelta(index=call.index, id=call.id, name=call.name, arguments=call.arguments)


def _finish_message(finish: Finish, parser: ReplyParser) -> pb.Finish:
    """A call that met the length limit is told as such: its arguments may be cut."""
    message = finish_message(finish)
    message.usage.reasoning_tokens = parser.num_reasoning_tokens
    if parser.has_calls and finish.reason is FinishReason.STOP:
        message.reason = pb.FINISH_REASON_TOOL_CALLS
    return message
