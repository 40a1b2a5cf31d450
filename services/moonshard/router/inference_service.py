"""moonshard.v1.Inference: what clients call."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from moonshard.config import CellConfig
from moonshard.errors import MoonshardError, RequestError
from moonshard.router.cell import Cell
from moonshard.router.detokenizer import Detokenizer
from moonshard.router.engine import Engine, Flight
from moonshard.router.metrics import RouterMetrics
from moonshard.router.requests import Finish, Limits, make_request
from moonshard.router.served_model import ServedModel
from moonshard.rpc.codec import finish_to_proto, messages_to_dicts, sampling_from_proto, sampling_to_proto
from moonshard.sampling import SamplingParams
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceServicer

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Inference"].full_name

# Specification 5.6. Thinking mode has SamplingParams' own defaults.
INSTANT_DEFAULTS = SamplingParams(temperature=0.6)

# Longer texts are encoded in a thread, so that tokens of other requests keep flowing.
INLINE_CHARACTERS = 2048


class InferenceService(InferenceServicer):
    def __init__(
        self,
        config: CellConfig,
        model: ServedModel,
        cell: Cell,
        engine: Engine,
        metrics: RouterMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._model = model
        self._cell = cell
        self._engine = engine
        self._metrics = metrics
        self._clock = clock

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        flight = await self._submit(request, SamplingParams(), self._prompt_of)
        async with aclosing(self._responses(flight, pb.GenerateResponse, "text")) as responses:
            async for response in responses:
                yield response

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatResponse]:
        defaults = SamplingParams() if _thinks(request) else INSTANT_DEFAULTS
        flight = await self._submit(request, defaults, self._prompt_of_chat)
        async with aclosing(self._responses(flight, pb.ChatResponse, "content")) as responses:
            async for response in responses:
                yield response

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        kind = request.WhichOneof("input")
        if kind is None:
            raise RequestError("input", "is required: text or chat")
        if kind == "text":
            return pb.TokenizeResponse(token_ids=await self._encode(request.text, allow_special=False))
        return pb.TokenizeResponse(token_ids=await self._prompt_of_chat(request.chat))

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:
        aborted = [request_id for request_id in request.request_ids if self._engine.abort(request_id)]
        unknown = [request_id for request_id in request.request_ids if request_id not in aborted]
        return pb.AbortResponse(aborted=aborted, unknown=unknown)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        model, limits = self._model, self._limits()
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

    async def _submit(self, request: Any, defaults: SamplingParams, prompt_of: Callable[[Any], Any]) -> Flight:
        """Check and queue a request of either kind. Raises what the caller is told."""
        arrival_s = self._clock()
        try:
            self._engine.check_open()
            sampling = sampling_from_proto(request.sampling, defaults)
            token_ids = await prompt_of(request)
            request_id = request.request_id or uuid.uuid4().hex
            seed = secrets.randbits(63)
            return self._engine.submit(make_request(request_id, token_ids, sampling, self._limits(), arrival_s, seed))
        except MoonshardError as error:
            self._metrics.rejected(error)
            raise

    async def _responses(
        self, flight: Flight, response_type: Callable[..., Any], text_field: str
    ) -> AsyncGenerator[Any, None]:
        """The flight's tokens as responses. Left early, the request is aborted."""
        try:
            detokenizer = Detokenizer(self._model.tokenizer.stream(), self._model.eos_token_ids)
            async for delta in flight.output.deltas():
                yield response_type(
                    **{text_field: detokenizer.push(delta)},
                    request_id=flight.request.id,
                    token_ids=delta.token_ids,
                    finish=_finish_message(delta.finish) if delta.finish else None,
                )
        finally:
            self._engine.abandon(flight)

    async def _prompt_of(self, request: pb.GenerateRequest) -> list[int]:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise RequestError("prompt", "is required: text or token_ids")
        if kind == "token_ids":
            return list(request.token_ids.ids)
        return await self._encode(request.text, allow_special=False)

    async def _prompt_of_chat(self, request: pb.ChatRequest) -> list[int]:
        if not request.messages:
            raise RequestError("messages", "must not be empty: there are 0")
        text = self._model.template.render(messages_to_dicts(request.messages), thinking=_thinks(request))
        return await self._encode(text, allow_special=True)

    async def _encode(self, text: str, allow_special: bool) -> list[int]:
        encode = self._model.tokenizer.encode
        if len(text) <= INLINE_CHARACTERS:
            return encode(text, allow_special)
        return await asyncio.to_thread(encode, text, allow_special)

    def _limits(self) -> Limits:
        attention = self._config.attention
        return Limits(
            vocab_size=self._model.vocab_size,
            max_position_embeddings=self._model.max_position_embeddings,
            kv_capacity=self._cell.membership.kv_capacity or attention.num_blocks * attention.block_size,
            default_max_tokens=self._config.router.default_max_tokens,
            eos_token_ids=self._model.eos_token_ids,
        )


def _thinks(request: pb.ChatRequest) -> bool:
    return request.thinking if request.HasField("thinking") else True


def _finish_message(finish: Finish) -> pb.Finish:
    timings = finish.timings
    return pb.Finish(
        reason=finish_to_proto(finish.reason),
        stop_token_id=finish.stop_token_id,
        usage=pb.Usage(prompt_tokens=finish.num_prompt_tokens, completion_tokens=finish.num_completion_tokens),
        timings=pb.Timings(queue_s=timings.queue_s, prefill_s=timings.prefill_s, decode_s=timings.decode_s),
    )
