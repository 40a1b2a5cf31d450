"""A shard that answers without Python: what the native call needs, and what it reports.

Shapes: R rows of a message, D hidden size, L MoE layers, E experts of the shard.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from moonshard.kernels import Int4Experts, Pool, Precision
from moonshard.kernels.experts import PRECISIONS
from moonshard.kernels.library import TYPES
from moonshard.kernels.links import AnswerPlan, LinkRecord
from moonshard.kernels.tally import Tally
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec

_REPLY_BYTES_MAX = 64 << 10  # longer replies are rare and long in computing: Python's steps do not show there
_LOG_SIZE = 64


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """A shard's experts by MoE layer, all on native kernels.

    tally: counted up for every batch, of the logical experts `counted`. observe: called with (rows,
    seconds of computing) for each batch, a little later.
    """

    pool: Pool
    layers: Mapping[int, Int4Experts]
    precision: Precision
    tally: Tally
    counted: range
    observe: Callable[[int, float], None]


class Answers:
    """Owns the memory that the native call works in."""

    def __init__(self, spec: WireSpec, shard: int, table: ExpertTable) -> None:
        layers = [table.layers[layer] for layer in spec.moe_layers]
        assert all(it.width == spec.hidden_size for it in layers), "these experts are of another model"
        tally, counted = table.tally, table.counted
        assert tally.rows_LE.shape == (len(layers), len(counted))
        rows_max = max(1, _REPLY_BYTES_MAX // wire.reply_bytes(spec, 1))
        self._spec, self._shard, self._table = spec, shard, table
        self._panels = np.array([it.address for it in layers], np.uint64)
        self._y_RD = torch.empty(rows_max, spec.hidden_size)
        self._rounded = np.empty((rows_max, spec.hidden_size), np.uint16)
        self._log_rows, self._log_ns = np.empty(_LOG_SIZE, np.int32), np.empty(_LOG_SIZE, np.int64)
        self.plan = AnswerPlan(
            pool=table.pool.handle,
            panels=self._panels.ctypes.data,
            hidden=layers[0].hidden,
            precision=PRECISIONS[table.precision],
            x_type=TYPES[spec.row_dtype],
            counts=tally.rows_LE.ctypes.data,
            active=tally.active_L.ctypes.data,
            batches=tally.batches_L.ctypes.data,
            sizes=tally.sizes_B.ctypes.data,
            num_sizes=len(tally.sizes_B),
            scratch=tally.scratch_E.ctypes.data,
            first_counted=counted.start,
            num_counted=len(counted),
            rows_max=rows_max,
            y=self._y_RD.data_ptr(),
            rounded=self._rounded.ctypes.data,
            log_size=_LOG_SIZE,
            log_rows=self._log_rows.ctypes.data,
            log_ns=self._log_ns.ctypes.data,
            cut_sent=-1,
        )
        self.address = ctypes.addressof(self.plan)

    def report(self) -> tuple[int, int]:
        """Tell the observer of the batches answered since the last report; their number and that of their rows."""
        num_batches = int(self.plan.num_logged)
        self.plan.num_logged = 0
        rows = self._log_rows[:num_batches].tolist()
        for num_rows, compute_ns in zip(rows, self._log_ns[:num_batches].tolist(), strict=True):
            self._table.observe(num_rows, compute_ns / 1e9)
        return num_batches, sum(rows)

    def last_message(self, asked: LinkRecord) -> tuple[bytes, wire.Bytes]:
        """The last answer, in memory of its own: the native call needs its memory for the next."""
        header = wire.reply_header(self._spec, self._shard, asked.step, asked.layer, asked.num_sums)
        y_RD = self._y_RD[: asked.num_sums].to(self._spec.row_dtype, copy=True)
        return wire.pack_header(header), wire.rows_to_bytes(y_RD)
