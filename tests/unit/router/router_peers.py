"""What the router's tests talk to it with: a small model's facts, and workers that speak the control stream."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from moonshard.config import CellConfig
from moonshard.metrics import new_registry
from moonshard.router.answer import Answer
from moonshard.router.app import Router
from moonshard.router.chat.prompt import PromptWriter
from moonshard.router.detokenizer import Detokenizer
from moonshard.router.flight import Flight
from moonshard.router.output import ChoiceOutput
from moonshard.router.requests import Request
from moonshard.router.served_model import ServedModel
from moonshard.router.stop_texts import StopTexts
from moonshard.router.template import ChatTemplate
from moonshard.rpc.tls import open_async_channel
from moonshard.sampling import SamplingParams
from moonshard.tokenizer import Tokenizer
from moonshard.tokenizer.files import TokenizerParts
from moonshard.v1 import control_pb2 as pb
from moonshard.v1 import inference_pb2 as inference
from moonshard.v1.control_pb2_grpc import ClusterStub, WorkersStub
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.access import Access, Metadata

CHECKPOINT_ID = "c0ffee"
NUM_EXPERTS = 16
END_OF_TURN, END_OF_TEXT = 256, 257
SPECIALS = {
    "<end>": END_OF_TURN,
    "<eot>": END_OF_TEXT,
    "<think>": 258,
    "</think>": 259,
    "<|tool_calls_section_begin|>": 260,
    "<|tool_calls_section_end|>": 261,
    "<|tool_call_begin|>": 262,
    "<|tool_call_argument_begin|>": 263,
    "<|tool_call_end|>": 264,
}
VOCAB_SIZE = 256 + len(SPECIALS)
LIMIT_S = 20.0


def byte_tokenizer() -> Tokenizer:
    """A token is a byte; SPECIALS come behind."""
    names = re.compile(f"({'|'.join(map(re.escape, SPECIALS))})")

    def marked(text: str) -> list[int]:
        parts = [[SPECIALS[part]] if part in SPECIALS else list(part.encode()) for part in names.split(text)]
        return list(itertools.chain.from_iterable(parts))

    bytes_of = {byte: bytes([byte]) for byte in range(256)} | {
        number: name.encode() for name, number in SPECIALS.items()
    }
    return Tokenizer(TokenizerParts(lambda text: list(text.encode()), marked, bytes_of, SPECIALS))


TEMPLATE = ChatTemplate(
    "{% for message in messages %}{{ message.role }}:{{ message.content or '' }}"
    "{% if message.tool_calls %}<|tool_calls_section_begin|>{% for call in message.tool_calls %}"
    "<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>{{ call.function.arguments }}<|tool_call_end|>"
    "{% endfor %}<|tool_calls_section_end|>{% endif %}<end>{% endfor %}<think>{% if not thinking %}</think>{% endif %}"
)


def small_model() -> ServedModel:
    return ServedModel(
        name="small",
        checkpoint_id=CHECKPOINT_ID,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=512,
        eos_token_ids=(END_OF_TURN, END_OF_TEXT),
        num_experts=NUM_EXPERTS,
        num_experts_per_token=2,
        num_layers=3,
        tokenizer=byte_tokenizer(),
        prompts=PromptWriter(byte_tokenizer(), TEMPLATE),
    )


def new_output(choice: int = 0, sampling: SamplingParams | None = None) -> ChoiceOutput:
    sampling = sampling or SamplingParams()
    text = Detokenizer(byte_tokenizer().stream(), (END_OF_TURN, END_OF_TEXT))
    return ChoiceOutput(choice, text, StopTexts(sampling.stop, sampling.include_stop), sampling.min_tokens)


def new_flight(request: Request, number: int) -> Flight:
    """A sequence that nobody reads."""
    answer = Answer(request.id, [new_output(0, request.sampling)], lambda _: None)
    return Flight(request, f"{request.id}#{number}", answer, 0)


def small_config(run_dir: Path, **values: Any) -> CellConfig:
    defaults: dict[str, Any] = {
        "checkpoint": "unused",
        "num_shards": 2,
        "run_dir": run_dir,
        "router": {"port": 0},
        "timeouts": {"drain_s": 5.0},
    }
    return CellConfig.build(defaults | values)


def join_message(role: pb.Role.ValueType, rank: int, num_shards: int = 2, **values: Any) -> pb.Join:
    per_shard = NUM_EXPERTS // num_shards
    first = rank % num_shards * per_shard if role == pb.ROLE_EXPERT else 0
    end = first + per_shard if role == pb.ROLE_EXPERT else 0
    defaults: dict[str, Any] = {
        "role": role, "rank": rank, "pid": 1000 + rank, "host": "here", "metrics_address": "127.0.0.1:1",
        "first_expert": first, "end_expert": end, "checkpoint_id": CHECKPOINT_ID,
    }  # fmt: skip
    return pb.Join(**(defaults | values))


class PeerWorker:
    """A worker's end of the control stream. `received` holds everything the router said."""

    def __init__(self, channel: grpc.aio.Channel, join: pb.Join, metadata: Metadata = ()) -> None:
        self.received: asyncio.Queue[pb.RouterMessage] = asyncio.Queue()
        stub: Any = WorkersStub(channel)
        self.call = stub.Join(metadata=metadata)
        self._join = join
        self._writing = asyncio.Lock()
        self._credits = pb.Credits()
        self._running: dict[str, int] = {}  # blocks by sequence
        self._num_admitted = 0
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "PeerWorker":
        await self.call.write(pb.WorkerMessage(join=self._join))
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._reader is not None
        self.call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self.call:
            for sequence in message.admit.sequences:
                self._num_admitted += 1
                self._running[sequence.request_id] = len(sequence.prompt_token_ids) // self._credits.block_size + 1
            for request_id in message.abort.request_ids:
                del self._running[request_id]
            self.received.put_nowait(message)
            if message.HasField("abort"):
                await self.send(outputs=pb.SequenceOutputs(free=self.free()))

    async def next(self, kind: str) -> Any:
        """The body of the next message, which must be of this kind."""
        async with asyncio.timeout(LIMIT_S):
            message = await self.received.get()
        assert message.WhichOneof("body") == kind, f"expected {kind}, got {message}"
        return getattr(message, kind)

    async def send(self, **body: Any) -> None:
        async with self._writing:
            await self.call.write(pb.WorkerMessage(**body))

    def free(self) -> pb.FreeCredits:
        return pb.FreeCredits(
            num_free_blocks=self._credits.num_blocks - sum(self._running.values()),
            num_free_seqs=self._credits.max_num_seqs - len(self._running),
            num_admitted=self._num_admitted,
        )

    async def ready_shard(self) -> None:
        await self.send(ready=pb.Ready(data_address=f"unix:/shard-{self._join.rank}"))

    async def ready_attention(self, num_blocks: int = 8, block_size: int = 16, max_num_seqs: int = 4) -> None:
        credits = pb.Credits(
            block_size=block_size, num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_step_tokens=64
        )
        self._credits = credits
        await self.send(ready=pb.Ready(credits=credits))

    async def output(self, request_id: str, token_ids: Sequence[int], **values: Any) -> None:
        output = pb.SequenceOutput(request_id=request_id, token_ids=token_ids, **values)
        if output.finish_reason or output.error or output.preempted:
            self._running.pop(request_id, None)
        await self.send(outputs=pb.SequenceOutputs(outputs=[output], free=self.free()))

    async def answer(self, text: str) -> pb.Sequence:
        """Serve one admitted sequence: the text's bytes one by one, then the end of turn."""
        sequence: pb.Sequence
        (sequence,) = (await self.next("admit")).sequences
        for byte in text.encode():
            await self.output(sequence.request_id, [byte])
        await self.finish(sequence.request_id)
        return sequence

    async def finish(self, request_id: str) -> None:
        await self.output(
            request_id, [END_OF_TURN], finish_reason=inference.FINISH_REASON_STOP, stop_token_id=END_OF_TURN
        )


class PeerCell:
    """A started router, its clients' channel, and its workers."""

    def __init__(self, router: Router, channel: grpc.aio.Channel, operator: Metadata = ()) -> None:
        self.router = router
        self.operator = operator
        self.channel = channel
        self.inference: Any = InferenceStub(channel)
        self.cluster = ClusterStub(channel)
        self.shards: list[PeerWorker] = []
        self.attention: list[PeerWorker] = []

    async def status(self) -> pb.GetStatusResponse:
        return await self.cluster.GetStatus(pb.GetStatusRequest(), metadata=self.operator)

    async def until(self, holds: Callable[[pb.GetStatusResponse], bool]) -> pb.GetStatusResponse:
        """Ask for the status until it is as wished."""
        async with asyncio.timeout(LIMIT_S):
            while not holds(status := await self.status()):
                await asyncio.sleep(0.01)
        return status


@asynccontextmanager
async def started_router(config: CellConfig, model: ServedModel | None = None) -> AsyncIterator[PeerCell]:
    router = Router(config, model or small_model(), new_registry())
    await router.start()
    access = Access.of_config(config.router)
    async with open_async_channel(router.address, access.tls) as channel:
        try:
            yield PeerCell(router, channel, access.operator_metadata)
        finally:
            await router.close("test over")


@asynccontextmanager
async def ready_cell(config: CellConfig, model: ServedModel | None = None, **credits: int) -> AsyncIterator[PeerCell]:
    """A router with all its shards and attention workers ready."""
    async with started_router(config, model) as cell:
        for rank in range(config.num_shards * config.num_replicas):
            cell.shards.append(await _joined(cell, pb.ROLE_EXPERT, rank, config.num_shards))
        for rank in range(config.num_attention):
            cell.attention.append(await _joined(cell, pb.ROLE_ATTENTION, rank, config.num_shards))
        for shard in cell.shards:
            await shard.ready_shard()
        for worker in cell.attention:
            await worker.next("members")
            await worker.ready_attention(**credits)
        await cell.until(lambda status: status.ready)
        try:
            yield cell
        finally:
            for worker in (*cell.shards, *cell.attention):
                await worker.__aexit__()


async def _joined(cell: PeerCell, role: pb.Role.ValueType, rank: int, num_shards: int) -> PeerWorker:
    worker = await PeerWorker(cell.channel, join_message(role, rank, num_shards), cell.operator).__aenter__()
    await worker.next("welcome")
    return worker


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine with a limit."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S * 2):
            await test()

    asyncio.run(limited())


def generate_request(text: str = "hi", **values: Any) -> inference.GenerateRequest:
    return inference.GenerateRequest(text=text, **values)


async def collect(call: Any) -> list[Any]:
    return [response async for response in call]
