"""vllm.grpc.engine.VllmEngine: what gateways call that drive vLLM over gRPC. An adapter over the front door."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from smg_grpc_proto.generated import common_pb2 as common
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated.vllm_engine_pb2_grpc import VllmEngineServicer

from moonshard.errors import RequestError, Unsupported
from moonshard.router.chat.tool_choice import ToolBinder
from moonshard.router.frontdoor import FrontDoor, Submission
from moonshard.router.gateway.declared_tools import choice_of
from moonshard.router.gateway.kv_events import KvEvents
from moonshard.router.gateway.loads import LoadMeter
from moonshard.router.gateway.prompts import Prompt
from moonshard.router.gateway.responses import Responses
from moonshard.router.gateway.sampling import sampling_of
from moonshard.router.gateway.served import GatewayModel
from moonshard.router.responses import flag_degraded
from moonshard.router.served_model import ServedModel
from moonshard.sampling import SamplingParams

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VllmEngine"].full_name

# Specification 5.6. Thinking mode has SamplingParams' own defaults.
DEFAULTS, INSTANT_DEFAULTS = SamplingParams(), SamplingParams(temperature=0.6)

# Anthropic's API thinks only when the client asks for it. smg names its requests so.
ANTHROPIC_ID = "msg_"

# Longer prompts are read in a thread, so that tokens of other requests keep flowing.
INLINE_TOKENS = 4096
CHUNK_BYTES = 1 << 20


class VllmEngineService(VllmEngineServicer):  # type: ignore[misc]  # its stubs have no types
    """gateway: the checkpoint as gateways see it. loads: what the cell is doing."""

    def __init__(
        self,
        model: ServedModel,
        gateway: GatewayModel,
        door: FrontDoor,
        binder: ToolBinder,
        loads: LoadMeter,
        kv_events: KvEvents,
    ) -> None:
        self._binder = binder
        self._model = model
        self._gateway = gateway
        self._door = door
        self._loads = loads
        self._kv_events = kv_events

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        arrival_s = self._door.clock()
        with self._door.counting_refusals():
            self._door.check_open()
            _refuse_foreign(request)
            prompt = await self._prompt_of(request)
            sampling = sampling_of(request.sampling_params, INSTANT_DEFAULTS if prompt.is_instant else DEFAULTS)
            submission = Submission(
                prompt.token_ids,
                sampling,
                request.request_id,
                prompt_opens_thought=prompt.opens_thought,
                arrival_s=arrival_s,
            )
            if prompt.tools or sampling.constraint:
                submission = await self._door.preparation.run(lambda: self._bound(submission, prompt))
            answer = self._door.submit(submission)
        responses = Responses(prompt.token_ids, request.stream, request.sampling_params.stop_token_ids)
        try:
            async for delta in answer.deltas():
                for response in responses.of(delta):
                    yield response
        finally:
            flag_degraded(context, answer)
            answer.abandon()

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:
        for request_id in request.request_ids:
            self._door.abort(request_id)
        return pb.AbortResponse()

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        refusal = self._loads.refusal
        return pb.HealthCheckResponse(healthy=refusal is None, message=refusal or "ready")

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        model, facts, limits = self._model, self._gateway.facts, self._door.limits()
        return pb.GetModelInfoResponse(
            # Not the folder's path: a gateway on this machine would read the files themselves, not the bundle.
            model_path=model.name,
            is_generation=True,
            max_context_length=limits.max_model_len,
            vocab_size=model.vocab_size,
            served_model_name=model.name,
            model_type=facts.model_type,
            architectures=facts.architectures,
            eos_token_ids=model.eos_token_ids,
            bos_token_id=facts.bos_token_id,
            pad_token_id=facts.pad_token_id,
            max_req_input_len=limits.max_model_len - 1,
            # Gateways fill in what a client leaves open. The temperature stays open: it depends on the mode.
            default_sampling_params_json=json.dumps({"top_p": DEFAULTS.top_p}),
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        return self._loads.server_info()

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Any) -> pb.GetLoadsResponse:
        return self._loads.loads()

    async def GetTokenizer(
        self, request: common.GetTokenizerRequest, context: Any
    ) -> AsyncIterator[common.GetTokenizerChunk]:
        bundle = await asyncio.to_thread(lambda: self._gateway.bundle)
        for start in range(0, len(bundle.data), CHUNK_BYTES):
            piece = bundle.data[start : start + CHUNK_BYTES]
            is_last = start + CHUNK_BYTES >= len(bundle.data)
            yield common.GetTokenizerChunk(data=piece, sha256=bundle.sha256 if is_last else "")

    async def FlushCache(self, request: common.FlushCacheRequest, context: Any) -> common.FlushCacheResponse:
        num_workers = self._loads.flush()
        return common.FlushCacheResponse(success=True, message=f"blocks not in use dropped by {num_workers} workers")

    async def SubscribeKvEvents(
        self, request: common.SubscribeKvEventsRequest, context: Any
    ) -> AsyncIterator[common.KvEventBatch]:
        async for batch in self._kv_events.subscribe(request.start_sequence_number):
            yield batch

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        raise Unsupported("Embed: moonshard serves generation only")

    async def StartProfile(self, request: common.StartProfileRequest, context: Any) -> common.ProfileResponse:
        raise Unsupported("StartProfile: moonshard has no profiler behind this call")

    async def StopProfile(self, request: common.StopProfileRequest, context: Any) -> common.ProfileResponse:
        raise Unsupported("StopProfile: moonshard has no profiler behind this call")

    async def _prompt_of(self, request: pb.GenerateRequest) -> Prompt:
        sampling = request.sampling_params
        if request.WhichOneof("input") == "text":
            ids = await self._door.preparation.run(lambda: self._model.tokenizer.encode(request.text, False))
        else:
            ids = list(request.tokenized.input_ids)
        if sampling.HasField("truncate_prompt_tokens"):
            ids = _truncate(ids, sampling.truncate_prompt_tokens)
        read, asks = self._gateway.prompts.read, request.request_id.startswith(ANTHROPIC_ID)
        return (
            read(ids, asks) if len(ids) <= INLINE_TOKENS else await self._door.preparation.run(lambda: read(ids, asks))
        )

    def _bound(self, submission: Submission, prompt: Prompt) -> Submission:
        """With its grammar: that of the declared tools, or of the constraint that the gateway sent."""
        sampling = submission.sampling
        if found := choice_of(prompt, sampling.constraint):
            tools, choice = found
            sampling = self._binder.bind(
                replace(sampling, constraint=None), tools, choice, prompt.opens_thought, calls_end_thoughts=False
            )
        grammar = self._door.grammar_of(sampling, prompt.opens_thought)
        return replace(submission, sampling=sampling, grammar=grammar)


def _refuse_foreign(request: pb.GenerateRequest) -> None:
    """What this protocol can carry and this cell cannot do. Raises RequestError naming the field."""
    if request.HasField("mm_inputs") or request.extra_mm_inputs or request.HasField("media_refs"):
        raise RequestError("mm_inputs", "images and videos are not served")
    if request.HasField("kv_transfer_params") or request.HasField("kv_transfer_params_json"):
        raise RequestError("kv_transfer_params", "KV caches are not handed over between cells")
    if request.data_parallel_rank:
        raise RequestError("data_parallel_rank", f"a cell has the rank 0 only, got {request.data_parallel_rank}")


def _truncate(ids: list[int], length: int) -> list[int]:
    if length < 1:
        raise RequestError("truncate_prompt_tokens", f"must be at least 1, got {length}")
    return ids[-length:]
