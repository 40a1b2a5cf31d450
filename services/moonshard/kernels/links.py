"""The native side of the direct links: structures that Python and C++ share, and the calls that move whole messages.

Python opens, closes and greets; a call moves what is usual and leaves the rest, with the bytes read so far, to Python.
It does not know: handshakes, errors' words, tensors. The structures are plain memory and exist without the library too.
"""

import ctypes
import functools
import sys
from ctypes import POINTER, c_int32, c_int64, c_uint8, c_uint64, c_void_p
from enum import IntEnum

from moonshard.kernels import library as _library

HEADER_BYTES = 64
NOT_TAKEN = -1
"""In a record's `error`, beside errno's numbers: the socket had no room for the rows until the limit."""


class State(IntEnum):
    """Of a link after a native call. TROUBLE: Python must see to it."""

    QUIET = 0
    MESSAGE = 1
    TROUBLE = 2


class Status(IntEnum):
    """Of a courier's call. REFUSED: nothing was sent. INTERRUPTED: a signal came, call again."""

    DONE = 0
    REFUSED = 1
    TROUBLE = 2
    TIMED_OUT = 3
    INTERRUPTED = 4


class LinkRecord(ctypes.Structure):
    """As `Link` in native/link.h."""

    _fields_ = (
        ("fd", c_int32),
        ("native", c_int32),
        ("reads", c_int32),
        ("state", c_int32),
        ("revents", c_int32),
        ("error", c_int32),
        ("buffer", c_void_p),
        ("capacity", c_int64),
        ("filled", c_int64),
        ("unsent", c_void_p),
        ("num_unsent", c_int64),
        ("source", c_int64),
        ("max_rows", c_int64),
        ("step", c_uint64),
        ("layer", c_int32),
        ("num_rows", c_int32),
        ("num_sums", c_int64),
        ("sent_bytes", c_int64),
        ("received_bytes", c_int64),
        ("waited_ns", c_int64),
    )


class LinkShape(ctypes.Structure):
    """As `LinkShape` in native/link.h. dispatch, reply: headers to fill in; arrays: int32, kept alive elsewhere."""

    _fields_ = (
        ("dispatch", c_uint8 * HEADER_BYTES),
        ("reply", c_uint8 * HEADER_BYTES),
        ("row_bytes", c_int64),
        ("num_experts", c_int64),
        ("num_shards", c_int64),
        ("max_rows", c_int64),
        ("layers", c_void_p),
        ("num_layers", c_int64),
        ("sums_by_expert", c_int64),
        ("copies", c_void_p),
        ("shards", c_void_p),
        ("copies_max", c_int64),
        ("slots", c_void_p),
    )


class AnswerPlan(ctypes.Structure):
    """As `AnswerPlan` in native/link_answer.h."""

    _fields_ = (
        ("pool", c_void_p),
        ("panels", c_void_p),
        ("hidden", c_int64),
        ("precision", c_int32),
        ("x_type", c_int32),
        ("counts", c_void_p),
        ("active", c_void_p),
        ("batches", c_void_p),
        ("sizes", c_void_p),
        ("num_sizes", c_int64),
        ("scratch", c_void_p),
        ("first_counted", c_int64),
        ("num_counted", c_int64),
        ("rows_max", c_int64),
        ("y", c_void_p),
        ("rounded", c_void_p),
        ("num_logged", c_int64),
        ("log_size", c_int64),
        ("log_rows", c_void_p),
        ("log_ns", c_void_p),
        ("cut_sent", c_int64),
        ("cut_link", c_int64),
    )


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "ms_courier_new": (c_void_p, [POINTER(LinkShape), c_void_p, c_int32]),
    "ms_courier_free": (None, [c_void_p]),
    # courier, step, layer, x, ids, wide_ids, weights, rows, timeout_ns
    "ms_courier_dispatch": (
        c_int32,
        [c_void_p, c_uint64, c_int32, c_void_p, c_void_p, c_int32, c_void_p, c_int64, c_int64],
    ),
    "ms_courier_combine": (c_int32, [c_void_p, c_void_p, c_int64]),
    # shape, links, num_links, listener, timeout_ns
    "ms_link_receive": (c_int32, [c_void_p, c_void_p, c_int32, c_int32, c_int64]),
    # shape, plan, links, num_links, listener, timeout_ns
    "ms_link_answer": (c_int32, [c_void_p, c_void_p, c_void_p, c_int32, c_int32, c_int64]),
    # shape, link, step, layer, num_rows, y, convert, scratch
    "ms_link_reply": (
        c_int64,
        [c_void_p, c_void_p, c_uint64, c_int32, c_int64, c_void_p, c_int32, c_void_p],
    ),
}


@functools.cache
def native_links() -> ctypes.CDLL | None:
    """The library with the links' functions declared; None without it, or where bytes are ordered otherwise."""
    if sys.byteorder != "little" or not _library.available():
        return None
    library = _library.native()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library
