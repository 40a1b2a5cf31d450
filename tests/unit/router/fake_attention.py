"""A whole cell of peers that serve by themselves: a simulated attention worker behind a real control stream."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from moonshard.router.members import Credits
from moonshard.rpc.codec import finish_to_proto
from moonshard.v1 import control_pb2 as pb
from moonshard.v1.control_pb2_grpc import WorkersStub
from tests.unit.router.router_peers import PeerWorker, join_message
from tests.unit.router.simulated_worker import Running, SimulatedWorker


class FakeAttention:
    """Steps while it has work. step_s: seconds that an iteration over so many tokens takes.

    first_s: by sequence, when it came and when its first token went out, on time.perf_counter's clock.
    """

    def __init__(
        self, channel: grpc.aio.Channel, join: pb.Join, credits: Credits, step_s: Callable[[int], float]
    ) -> None:
        self.simulated = SimulatedWorker(credits)
        self.first_s: dict[str, tuple[float, float]] = {}
        stub: Any = WorkersStub(channel)
        self._call = stub.Join()
        self._join = join
        self._step_s = step_s
        self._work = asyncio.Event()
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._came_s: dict[str, float] = {}
        self._told = self.simulated.free()

    async def __aenter__(self) -> "FakeAttention":
        await self._call.write(pb.WorkerMessage(join=self._join))
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._run())]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._call:
            if message.HasField("members"):
                self._ready.set()
            for sequence in message.admit.sequences:
                self._came_s[sequence.request_id] = time.perf_counter()
                self.simulated.enqueue(
                    Running(
                        sequence.request_id,
                        len(sequence.prompt_token_ids),
                        sequence.sampling.max_tokens,
                        len(sequence.output_token_ids),
                    )
                )
            self.simulated.abort(message.abort.request_ids)
            if message.HasField("admit") or message.HasField("abort"):
                self._work.set()

    async def _run(self) -> None:
        await self._ready.wait()
        credits = self.simulated.credits
        ready = pb.Credits(
            block_size=credits.block_size,
            num_blocks=credits.num_blocks,
            max_num_seqs=credits.max_num_seqs,
            max_step_tokens=credits.max_step_tokens,
        )
        await self._call.write(pb.WorkerMessage(ready=pb.Ready(credits=ready)))
        due_s = time.perf_counter()
        while True:
            if self.simulated.is_idle:
                self._work.clear()
                await self._work.wait()
                due_s = time.perf_counter()
            updates, num_tokens = self.simulated.step()
            due_s = max(due_s + self._step_s(num_tokens), time.perf_counter())
            await asyncio.sleep(due_s - time.perf_counter())
            free = self.simulated.free()
            if updates or free != self._told:
                self._told = free
                await self._call.write(self._message(updates))

    def _message(self, updates: Any) -> pb.WorkerMessage:
        now_s = time.perf_counter()
        for update in updates:
            if (came_s := self._came_s.pop(update.sequence_id, None)) is not None:
                self.first_s[update.sequence_id] = (came_s, now_s)
        outputs = [
            pb.SequenceOutput(
                request_id=update.sequence_id,
                token_ids=update.token_ids,
                finish_reason=finish_to_proto(update.finish_reason),
                preempted=update.preempted,
            )
            for update in updates
        ]
        free = pb.FreeCredits(
            num_free_blocks=self._told.num_free_blocks,
            num_free_seqs=self._told.num_free_seqs,
            num_admitted=self._told.num_admitted,
            num_pending_tokens=self._told.num_pending_tokens,
        )
        return pb.WorkerMessage(outputs=pb.SequenceOutputs(outputs=outputs, free=free))


@asynccontextmanager
async def serving_peers(
    channel: grpc.aio.Channel, credits: Credits, step_s: Callable[[int], float], num_shards: int = 2
) -> AsyncIterator[FakeAttention]:
    """Shards and one attention worker join the router behind the channel and serve."""
    shards = [PeerWorker(channel, join_message(pb.ROLE_EXPERT, rank, num_shards)) for rank in range(num_shards)]
    try:
        for shard in shards:
            await shard.__aenter__()
            await shard.next("welcome")
            await shard.ready_shard()
        join = join_message(pb.ROLE_ATTENTION, 0, num_shards)
        async with FakeAttention(channel, join, credits, step_s) as attention:
            yield attention
    finally:
        for shard in shards:
            await shard.__aexit__()
