"""What a cell is doing, as gateways ask for it. A cell counts as one data-parallel rank."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from moonshard import __version__
from moonshard.config import CellConfig
from moonshard.router.cell import Cell
from moonshard.router.engine import Engine


class LoadMeter:
    def __init__(self, config: CellConfig, cell: Cell, engine: Engine, clock: Callable[[], float]) -> None:
        self._config = config
        self._cell = cell
        self._engine = engine
        self._clock = clock
        self._started_s = clock()

    @property
    def refusal(self) -> str | None:
        """Why the cell takes no requests now."""
        return self._engine.refusal

    def flush(self) -> int:
        """Ask every attention worker to forget the blocks that are not in use; how many were asked."""
        return self._cell.flush_caches()

    def server_info(self) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            active_requests=self._engine.num_running + self._engine.num_waiting,
            last_receive_timestamp=time.time(),
            uptime_seconds=self._clock() - self._started_s,
            server_type="vllm-grpc",
            data_parallel_size=1,
            kv_cache_dtype="auto",
            block_size=self._config.attention.block_size,
            model_dtype=f"torch.{self._config.dtype}",
            max_num_seqs=self._max_running,
            # A thought is left alone by a request's grammar, as behind a reasoning parser.
            constrained_decoding_start="after_reasoning",
        )

    def loads(self) -> pb.GetLoadsResponse:
        num_total = self._cell.membership.kv_tokens
        num_used = max(0, num_total - self._engine.num_free_tokens)
        load = pb.SchedulerLoad(
            dp_rank=0,
            num_running_reqs=self._engine.num_running,
            num_waiting_reqs=self._engine.num_waiting,
            num_total_reqs=self._engine.num_running + self._engine.num_waiting,
            num_used_tokens=num_used,
            max_total_num_tokens=num_total,
            token_usage=num_used / max(1, num_total),
            gen_throughput=self._cell.generated_per_second(),
            utilization=min(1.0, self._engine.num_running / max(1, self._max_running)),
            max_running_requests=self._max_running,
        )
        return pb.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(), version=__version__, dp_rank_count=1, loads=[load]
        )

    @property
    def _max_running(self) -> int:
        return self._config.attention.max_num_seqs * self._config.num_attention
