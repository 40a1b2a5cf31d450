"""Sending a shard's sums back: one system call for each message, converted to the wire's type on the way."""

import ctypes
import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from moonshard.errors import PeerLost
from moonshard.kernels import links as kernel_links
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.links.shape import Shape
from moonshard.transport.links.stream import Stream


class Replies(Protocol):
    def send(self, stream: Stream, asked: wire.Header, y_RD: Tensor) -> None:
        """Answer the DISPATCH of that header; the stream keeps what the socket does not take. Raises PeerLost."""


class PythonReplies:
    def __init__(self, spec: WireSpec, shard: int) -> None:
        self._spec = spec
        self._shard = shard

    def send(self, stream: Stream, asked: wire.Header, y_RD: Tensor) -> None:
        stream.send(*self.message(asked, y_RD))

    def message(self, asked: wire.Header, y_RD: Tensor) -> tuple[bytes, wire.Bytes]:
        # CUDA sums take the copy here; this has never run on a CUDA device.
        rows_RB = wire.rows_to_bytes(y_RD.to("cpu", self._spec.row_dtype).contiguous())
        header = wire.reply_header(self._spec, self._shard, asked.step, asked.layer, len(y_RD))
        return wire.pack_header(header), rows_RB


class NativeReplies:
    def __init__(self, library: ctypes.CDLL, shape: Shape, spec: WireSpec, shard: int) -> None:
        self._send = library.ms_link_reply
        self._shape = shape
        self._shape_at = ctypes.addressof(shape)
        self._row_dtype = spec.row_dtype
        self._python = PythonReplies(spec, shard)
        self._reserve(1)

    def send(self, stream: Stream, asked: wire.Header, y_RD: Tensor) -> None:
        num_sums, dtype = len(y_RD), y_RD.dtype
        convert = dtype is not self._row_dtype
        if stream.unsent or (convert and dtype is not torch.float32) or not (y_RD.is_cpu and y_RD.is_contiguous()):
            return self._python.send(stream, asked, y_RD)
        if convert and num_sums > self._scratch_rows:
            self._reserve(num_sums)
        record = ctypes.addressof(stream.record)
        sent = self._send(
            self._shape_at, record, asked.step, asked.layer, num_sums, y_RD.data_ptr(), convert, self._scratch_at
        )
        if sent < 0:
            raise PeerLost(f"the link broke while sending: {os.strerror(-sent)}")
        if sent < wire.HEADER_BYTES + num_sums * self._shape.row_bytes:
            stream.send_rest(sent, *self._python.message(asked, y_RD))
        return None

    def _reserve(self, num_rows: int) -> None:
        self._scratch = np.empty(num_rows * self._shape.row_bytes, np.uint8)
        self._scratch_at, self._scratch_rows = self._scratch.ctypes.data, num_rows


def make_replies(shape: Shape, spec: WireSpec, shard: int) -> Replies:
    library = kernel_links.native_links()
    return NativeReplies(library, shape, spec, shard) if library else PythonReplies(spec, shard)
