"""The kernels' C structs, laid out as native/{matrix,gate,block,attention}.h declare them. Sizes are checked on load.

Addresses are plain integers: whoever builds a struct keeps the tensors behind it alive.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch

from moonshard.kernels.library import TYPES, native


class Matrices(ctypes.Structure):
    """`count` BF16 matrices of one size, in panels."""

    _fields_ = (("panels", c_void_p), ("count", c_int64), ("outputs", c_int64), ("inputs", c_int64))


class Operand(ctypes.Structure):
    """Rows of activations; strides in elements, from row to row and from matrix to matrix."""

    _fields_ = (("data", c_void_p), ("type", c_int32), ("stride", c_int64), ("next", c_int64))


class Gate(ctypes.Structure):
    _fields_ = (
        ("parts", Matrices),
        ("bias", c_void_p),
        ("top_k", c_int64),
        ("num_groups", c_int64),
        ("kept_groups", c_int64),
        ("normalise", c_int64),
        ("scale", c_float),
    )


class AttentionLayer(ctypes.Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("q_a_norm", c_void_p),
        ("kv_a_norm", c_void_p),
        ("post_norm", c_void_p),
        ("qkv_a", Matrices),
        ("q_b", Matrices),
        ("w_uk", Matrices),
        ("w_uv", Matrices),
        ("o", Matrices),
        ("gate", Gate),
        ("eps", c_float),
        ("latent_eps", c_float),
        ("scale", c_float),
    )


class Cache(ctypes.Structure):
    _fields_ = (("slots", c_void_p), ("type", c_int32), ("latent", c_int64), ("rope", c_int64))


class Step(ctypes.Structure):
    _fields_ = (
        ("rows", c_int64),
        ("rotations", c_void_p),
        ("written", c_void_p),
        ("sequence", c_void_p),
        ("visible", c_void_p),
        ("block_table", c_void_p),
        ("table_stride", c_int64),
        ("block_size", c_int64),
    )


def check_sizes() -> None:
    """AssertionError when this file and the C++ headers disagree."""
    mirrors = (Matrices, Operand, Gate, AttentionLayer, Cache, Step)
    sizes = (c_int64 * len(mirrors))()
    native().ms_struct_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(mirror) for mirror in mirrors], "a struct differs between C++ and Python"


def operand(tensor: torch.Tensor) -> Operand:
    """Of a matrix with contiguous rows; its type and strides are checked by the caller."""
    return Operand(tensor.data_ptr(), TYPES[tensor.dtype], tensor.stride(0), 0)
