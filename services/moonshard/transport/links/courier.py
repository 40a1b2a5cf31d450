"""Dispatch and combine in one native call each, for the usual case: every link in order and one handle on its way."""

import ctypes
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from moonshard.kernels.links import Status
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.links.shape import Shape
from moonshard.transport.links.stream import Stream
from moonshard.transport.routing_table import RoutingTable

_KEPT_BYTES_MAX = 32 << 20  # memory for a reply that a link keeps for the next one


class Courier:
    """Moves messages over `streams` (in shard order), which it shares with their owner, call by call; by `table`."""

    def __init__(
        self, library: ctypes.CDLL, spec: WireSpec, source: int, streams: Sequence[Stream], table: RoutingTable
    ) -> None:
        self._spec = spec
        self._streams = streams
        self._reserved_rows = 0
        self._shape = Shape(spec, source, 0)
        self._shape.route_by(table)
        self._table = (ctypes.c_void_p * len(streams))(*[ctypes.addressof(stream.record) for stream in streams])
        self._handle = library.ms_courier_new(self._shape, self._table, source)
        if not self._handle:
            raise MemoryError("no memory for the links")
        self._free = weakref.finalize(self, library.ms_courier_free, self._handle)
        self._dispatch, self._combine = library.ms_courier_dispatch, library.ms_courier_combine

    def dispatch(self, step: int, layer: int, rows: tuple[Tensor, Tensor, Tensor], timeout_s: float) -> int:
        """Status of sending x_TD, ids_TK and weights_TK; on DONE all of it is in the sockets."""
        x_TD, ids_TK, weights_TK = rows
        x_TD = _plain(x_TD, self._spec.row_dtype)
        ids_TK = _plain(ids_TK, torch.int64 if ids_TK.dtype is torch.int64 else torch.int32)
        weights_TK = _plain(weights_TK, torch.float32)
        num_rows = x_TD.shape[0]
        assert x_TD.shape[1] == self._spec.hidden_size, f"rows of {x_TD.shape[1]}, not {self._spec.hidden_size}"
        assert ids_TK.shape == weights_TK.shape == (num_rows, self._spec.top_k), "ids and weights for each row"
        if num_rows > self._reserved_rows:
            self._reserve(num_rows)
        return self._dispatch(  # type: ignore[no-any-return]
            self._handle,
            step,
            layer,
            x_TD.data_ptr(),
            ids_TK.data_ptr(),
            ids_TK.dtype is torch.int64,
            weights_TK.data_ptr(),
            num_rows,
            int(timeout_s * 1e9),
        )

    def combine(self, y_TD: Tensor, timeout_s: float) -> int:
        """Status of waiting for the sums and adding them to y_TD."""
        status: int = self._combine(self._handle, y_TD.data_ptr(), max(0, int(timeout_s * 1e9)))
        if status == Status.DONE and wire.reply_bytes_max(self._spec, self._reserved_rows) > _KEPT_BYTES_MAX:
            self._shrink()
        return status

    def close(self) -> None:
        self._free()

    def _reserve(self, num_rows: int) -> None:
        for stream in self._streams:
            stream.reserve(wire.HEADER_BYTES + wire.reply_bytes_max(self._spec, num_rows))
        self._reserved_rows = num_rows

    def _shrink(self) -> None:
        for stream in self._streams:
            stream.shrink(_KEPT_BYTES_MAX)
        self._reserved_rows = 0


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself when a native call can read it, else a copy: on the CPU, contiguous, of this dtype."""
    if tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous():
        return tensor
    return tensor.detach().to("cpu", dtype).contiguous()
