"""moonshard.v1.Inference: what clients call."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeVar

from moonshard.errors import RequestError
from moonshard.router.answer import Answer
from moonshard.router.chat.turn import Turn, Turns
from moonshard.router.frontdoor import FrontDoor, Submission
from moonshard.router.responses import flag_degraded, generate_response
from moonshard.router.served_model import ServedModel
from moonshard.rpc.codec import sampling_from_proto, sampling_to_proto
from moonshard.sampling import SamplingParams
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceServicer

Prepared = TypeVar("Prepared")

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Inference"].full_name

# Longer texts, and requests whose grammars have to be compiled, are prepared in a thread, so that tokens of other
# requests keep flowing.
INLINE_CHARACTERS = 2048


class InferenceService(InferenceServicer):
    def __init__(self, model: ServedModel, door: FrontDoor, turns: Turns) -> None:
        self._model = model
        self._door = door
        self._turns = turns

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        answer = await self._submit(request)
        try:
            async for delta in answer.deltas():
                yield generate_response(answer.request_id, delta)
        finally:
            flag_degraded(context, answer)
            answer.abandon()

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatResponse]:
        turn, answer = await self._submit_chat(request)
        try:
            async for delta in answer.deltas():
                yield turn.response(answer.request_id, delta)
        finally:
            flag_degraded(context, answer)
            answer.abandon()

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        kind = request.WhichOneof("input")
        if kind is None:
            raise RequestError("input", "is required: text or chat")
        if kind == "text":
            return pb.TokenizeResponse(token_ids=await self._encode(request.text, allow_special=False))
        prompt = await self._prepared(self._turns.prompt, request.chat)
        return pb.TokenizeResponse(token_ids=prompt.token_ids, text=prompt.text)

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:
        aborted = [request_id for request_id in request.request_ids if self._door.abort(request_id)]
        unknown = [request_id for request_id in request.request_ids if request_id not in aborted]
        return pb.AbortResponse(aborted=aborted, unknown=unknown)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        model, limits = self._model, self._door.limits()
        defaults = replace(SamplingParams(), max_tokens=limits.default_max_tokens)
        return pb.GetModelResponse(
            name=model.name,
            vocab_size=model.vocab_size,
            max_model_len=limits.max_model_len,
            eos_token_ids=model.eos_token_ids,
            num_experts=model.num_experts,
            num_experts_per_token=model.num_experts_per_token,
            num_layers=model.num_layers,
            default_sampling=sampling_to_proto(defaults),
        )

    async def _submit(self, request: pb.GenerateRequest) -> Answer:
        """Check and queue. Raises what the caller is told."""
        arrival_s = self._door.clock()
        with self._door.counting_refusals():
            self._door.check_open()
            sampling = sampling_from_proto(request.sampling)
            token_ids = await self._prompt_of(request)
            grammar = None
            if sampling.constraint:
                grammar = await self._door.preparation.run(lambda: self._door.grammar_of(sampling, False))
            submission = Submission(token_ids, sampling, request.request_id, arrival_s=arrival_s, grammar=grammar)
            return self._door.submit(submission)

    async def _submit_chat(self, request: pb.ChatRequest) -> tuple[Turn, Answer]:
        """The same for a conversation."""
        arrival_s = self._door.clock()
        with self._door.counting_refusals():
            self._door.check_open()
            turn = await self._prepared(self._turns.prepare, request)
            submission = Submission(
                turn.prompt.token_ids,
                turn.sampling,
                request.request_id,
                prompt_opens_thought=turn.prompt.opens_thought,
                arrival_s=arrival_s,
                grammar=turn.grammar,
            )
            return turn, self._door.submit(submission)

    async def _prepared(self, prepare: Callable[[pb.ChatRequest], Prepared], request: pb.ChatRequest) -> Prepared:
        if not request.messages:
            raise RequestError("messages", "must not be empty: there are 0")
        is_short = request.ByteSize() <= INLINE_CHARACTERS
        if is_short and not request.tools and not request.sampling.HasField("constraint"):
            return prepare(request)
        return await self._door.preparation.run(lambda: prepare(request))

    async def _prompt_of(self, request: pb.GenerateRequest) -> list[int]:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise RequestError("prompt", "is required: text or token_ids")
        if kind == "token_ids":
            return list(request.token_ids.ids)
        return await self._encode(request.text, allow_special=False)

    async def _encode(self, text: str, allow_special: bool) -> list[int]:
        encode = self._model.tokenizer.encode
        if len(text) <= INLINE_CHARACTERS:
            return encode(text, allow_special)
        return await self._door.preparation.run(lambda: encode(text, allow_special))
