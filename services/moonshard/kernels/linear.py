"""y = x . w^T with BF16 weights as they lie in the checkpoint."""

import torch

from moonshard.kernels.library import TYPES, check, native, row_stride
from moonshard.kernels.pool import Pool

_FLOATS = (torch.float32, torch.bfloat16)


def linear(
    pool: Pool,
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    out_MN: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """[M, N] of `dtype` (float32 or bfloat16), or of `out_MN`'s. Shapes: M rows, N outputs, K inputs, any of them.

    x float32 or bfloat16: products are exact, sums FP32, in an order that depends on K alone. Rows of x, weight and out
    may lie at any stride; out must not overlap x. ValueError for other shapes or types.
    """
    rows, inputs = x_MK.shape
    columns = weight_NK.shape[0]
    x_stride = row_stride("x", x_MK, _FLOATS, inputs)
    w_stride = row_stride("weight", weight_NK, (torch.bfloat16,), inputs)
    y_MN = torch.empty(rows, columns, dtype=dtype) if out_MN is None else out_MN
    y_stride = row_stride("out", y_MN, _FLOATS, columns)
    if y_MN.shape[0] != rows:
        raise ValueError(f"out: expected {rows} rows, found {y_MN.shape[0]}")
    # fmt: off
    check(native().ms_linear(
        pool.handle, x_MK.data_ptr(), TYPES[x_MK.dtype], x_stride, weight_NK.data_ptr(), w_stride,
        y_MN.data_ptr(), TYPES[y_MN.dtype], y_stride, rows, columns, inputs,
    ))
    # fmt: on
    return y_MN
