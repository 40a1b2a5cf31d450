"""The compiled library, loaded on first use, with the types of its functions."""

import ctypes
import functools
import logging
from ctypes import c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch

from moonshard.kernels import build

log = logging.getLogger(__name__)

_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "ms_isa": (c_char_p, [c_char_p]),
    "ms_pool_new": (c_void_p, [c_int32, c_char_p]),
    "ms_pool_free": (None, [c_void_p]),
    # pool, words, scales, outputs, inputs, to, panel_stride
    "ms_repack": (c_int32, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64]),
    # pool, panels, width, hidden, first, experts,
    # x, x_type, x_stride, rows, ids, wide_ids, weights, slots, y, y_stride, precision, local, apart
    "ms_experts": (
        c_int32,
        [
            *(c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64),
            *(c_void_p, c_int32, c_int64, c_int64, c_void_p, c_int32, c_void_p, c_int64, c_void_p, c_int64, c_int32),
            *(c_void_p, c_int32),
        ],
    ),
    # pool, weights, stride, panels, outputs, inputs
    "ms_pack": (c_int32, [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64]),
    # pool, panels, count, outputs, inputs, x, x_type, x_stride, x_next, y, y_type, y_stride, y_next, rows
    "ms_multiply": (
        c_int32,
        [
            *(c_void_p, c_void_p, c_int64, c_int64, c_int64),
            *(c_void_p, c_int32, c_int64, c_int64, c_void_p, c_int32, c_int64, c_int64, c_int64),
        ],
    ),
    "ms_struct_sizes": (None, [c_void_p]),
    # pool, layer, cache, step, x, h, products, ids, weights
    "ms_attention_block": (
        c_int32,
        [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_void_p],
    ),
    # pool, cache, step, q, heads, scale
    "ms_attend": (c_int32, [c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_float]),
    # pool, gate, x, rows, ids, weights
    "ms_route": (c_int32, [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
    # pool, gate_up, down, h, rows, x
    "ms_swiglu": (c_int32, [c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_void_p]),
    # pool, norm, eps, matrix, x, rows, products, y
    "ms_norm_multiply": (
        c_int32,
        [c_void_p, c_void_p, c_float, c_void_p, c_void_p, c_int64, c_int32, c_void_p],
    ),
    "ms_advise_huge": (None, [c_void_p, c_int64]),
    "ms_read_all": (c_uint64, [c_void_p, c_void_p, c_int64]),
    "ms_peak": (c_float, [c_void_p, c_int32, c_int64, c_int64]),
}

# As in native/layout.h.
TYPES = {torch.float32: 0, torch.bfloat16: 1}
FLOATS = (torch.float32, torch.bfloat16)


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library and declare its functions."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


@functools.cache
def _installed() -> ctypes.CDLL | None:
    if not build.is_current():
        state = "stale" if build.LIBRARY.exists() else "not built"
        log.warning(
            "native kernels are %s: torch's operators serve instead, several times slower; "
            "with a C++ compiler, run `python -m moonshard.kernels`",
            state,
        )
        return None
    return open_library(build.LIBRARY)


def available() -> bool:
    """Whether the native kernels can be used; says once in the log when they cannot."""
    return _installed() is not None


def native() -> ctypes.CDLL:
    """The library; RuntimeError without it (ask `available()` first)."""
    library = _installed()
    if library is None:
        raise RuntimeError("the native kernels are not built; ask kernels.available() before using them")
    return library


def advise_large_pages(tensor: torch.Tensor) -> None:
    """Ask for large pages under a tensor that is still to be written, if the library is there; costs speed only."""
    if library := _installed():
        library.ms_advise_huge(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def check(status: int) -> None:
    """Turn a function's status into MemoryError."""
    if status != 0:
        raise MemoryError("the native kernels could not allocate their scratch memory")


def row_stride(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], columns: int) -> int:
    """Elements from row to row of a CPU matrix [any, columns] with contiguous rows; ValueError for anything else."""
    if tensor.dtype not in dtypes or tensor.device.type != "cpu":
        raise ValueError(
            f"{name}: expected {' or '.join(map(str, dtypes))} on the CPU, found {tensor.dtype} on {tensor.device}"
        )
    if tensor.dim() != 2 or tensor.shape[1] != columns:
        raise ValueError(f"{name}: expected [rows, {columns}], found {list(tensor.shape)}")
    if columns > 1 and tensor.stride(1) != 1:
        raise ValueError(f"{name}: expected contiguous rows, found stride {tensor.stride(1)}")
    return tensor.stride(0)
