"""The contract of the data plane, and what every transport shares.

Shapes: T rows of one step on an attention worker, R rows of a batch on a shard, D hidden size, K experts per token.

One copy of a row travels to each shard that holds at least one of its experts, with the row's K expert ids
(-1 where the expert is computed elsewhere) and K weights. The shard answers with one weighted sum per row, and the
attention side adds the shards' sums in shard order, not in arrival order: same inputs, same bits. Where experts may
move, such sums would change with them: then the shard answers with one weighted output for each (row, expert), in the
order of the ids, and the attention side adds a row's outputs in the gate's order, wherever they were computed.

Lifecycle on the attention side, once per iteration:
    begin_step(T); for each MoE layer in order: handle = dispatch(...); <shared expert>; y = combine(handle)
and `idle()` when there is nothing to run. On the expert side: batch = receive(); reply(batch, y).

Who closes what: each side closes its own ends with `close()`, from the thread that uses it; only `wake()` may be
called from another thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from moonshard.errors import ConfigError

Sums = Literal["shard", "expert"]
"""What a shard answers with: a sum of its experts for each row, or each (row, expert) apart."""


@dataclass(frozen=True, slots=True)
class WireSpec:
    """What both ends must agree on before the first row travels.

    moe_layers: indices of the MoE layers in order (in K2.5: 1..60). row_dtype: dtype of rows in both directions.
    checkpoint_id: fingerprint of the checkpoint's configuration. epoch: membership the links were opened under.
    sums: "expert" where experts may move, so that no bit depends on where they are.
    """

    hidden_size: int
    top_k: int
    num_experts: int
    num_shards: int
    moe_layers: tuple[int, ...]
    row_dtype: torch.dtype
    checkpoint_id: str
    epoch: int = 0
    sums: Sums = "shard"

    def __post_init__(self) -> None:
        if self.row_dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError("row_dtype", f"must be float32 or bfloat16, got {self.row_dtype}")

    def experts_of(self, shard: int) -> range:
        per_shard = self.num_experts // self.num_shards
        return range(shard * per_shard, (shard + 1) * per_shard)

    def num_sums(self, ids_RK: Any) -> int:
        """Rows of the answer to these ids, an array or a tensor: R, or with sums by expert P (row, expert) pairs."""
        return int((ids_RK >= 0).sum()) if self.sums == "expert" else len(ids_RK)


class Segment(NamedTuple):
    """Rows [start, stop) of a batch came from one message of one attention worker."""

    source: int
    step: int
    start: int
    stop: int


class ExpertBatch(NamedTuple):
    """What a shard computes at once: rows of one layer, possibly from several attention workers.

    x_RD: rows, row_dtype. topk_ids_RK: int32 logical expert ids, -1 where not on this shard.
    topk_weights_RK: float32. ticket: the transport's own; pass it back untouched.
    The tensors' memory is the transport's again once `reply` has been called.
    """

    layer: int
    x_RD: Tensor
    topk_ids_RK: Tensor
    topk_weights_RK: Tensor
    segments: tuple[Segment, ...]
    ticket: Any = None


@dataclass(slots=True)
class TransportStats:
    """Totals since start, read by the metrics collector. Seconds and bytes; one list entry per shard or source."""

    sent_bytes: list[int] = field(default_factory=list)
    received_bytes: list[int] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    num_dispatches: int = 0
    num_rows: int = 0

    @classmethod
    def for_peers(cls, num_peers: int) -> "TransportStats":
        return cls([0] * num_peers, [0] * num_peers, [0.0] * num_peers)


class Dispatcher(Protocol):
    """Attention side. Not thread-safe, `wake` excepted."""

    stats: TransportStats

    def begin_step(self, num_rows: int) -> None:
        """Announce an iteration of `num_rows` rows."""

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Any:
        """Send rows to the shards of their experts; returns the handle that owns them until combine is done.

        A lost shard is reported by `combine`. The caller leaves x_TD and its companions unchanged until then.
        """

    def combine(self, handle: Any) -> Tensor:
        """Wait for the shards' sums and add them in shard order: y_TD, float32.

        Raises PeerLost, TransportTimeout or ProtocolMismatch naming shard, layer and step.
        """

    def idle(self, timeout_s: float) -> None:
        """Return when `wake` was called or after timeout_s; serves the transport's own duties meanwhile."""

    def wake(self) -> None:
        """End the current or next `idle`. May be called from any thread."""

    def close(self) -> None: ...


class Endpoint(Protocol):
    """Expert side. Not thread-safe."""

    stats: TransportStats

    def receive(self, timeout_s: float) -> ExpertBatch | None:
        """The next batch, or None after timeout_s without one. Raises TransportError."""

    def reply(self, batch: ExpertBatch, y_RD: Tensor) -> None:
        """Send the weighted sums (float32 or row_dtype) back to where the batch's rows came from.

        One for each row, or with sums by expert one for each id that is not -1, in their order: `spec.num_sums`. y_RD
        belongs to the transport from here on: its memory may still be on its way when this returns.
        """

    def close(self) -> None: ...


def mask_foreign(topk_ids_TK: Tensor, experts: range) -> Tensor:
    """int32 ids with -1 where the expert is not in `experts`."""
    local = (topk_ids_TK >= experts.start) & (topk_ids_TK < experts.stop)
    return torch.where(local, topk_ids_TK, -1).to(torch.int32)


def sum_in_shard_order(
    parts: Sequence[tuple[Tensor | None, Tensor]],
    num_rows: int,
    hidden_size: int,
    device: torch.device | None = None,
) -> Tensor:
    """Add (row indices, sums) of the shards, given in shard order, to float32 rows [num_rows, hidden_size].

    Row indices None: the shard answered for every row. Adding to zeros first makes -0.0 the same in every transport.
    """
    y_TD = torch.zeros(num_rows, hidden_size, dtype=torch.float32, device=device)
    for rows, sums in parts:
        if rows is None:
            y_TD += sums
        else:
            y_TD[rows] += sums.float()
    return y_TD


def sum_by_expert(parts: Sequence[tuple[Tensor, Tensor]], num_rows: int, top_k: int, hidden_size: int) -> Tensor:
    """Add each row's outputs in the order of its ids, from (places, outputs) of the shards: float32 [T, D].

    places: row * top_k + slot of each output. The same bits for any division among shards.
    """
    num_slots = num_rows * top_k
    if not parts:
        return torch.zeros(num_rows, hidden_size)
    device = parts[0][1].device
    outputs_SD = torch.zeros(num_slots, hidden_size, dtype=torch.float32, device=device)
    for places_P, outputs_PD in parts:
        outputs_SD[places_P] = outputs_PD.float()
    y_TD = torch.zeros(num_rows, hidden_size, dtype=torch.float32, device=device)
    for slot in range(top_k):
        y_TD += outputs_SD[slot::top_k]
    return y_TD
