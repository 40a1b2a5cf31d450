"""y = x . w^T with BF16 weights in the kernels' own layout."""

import torch

from moonshard.kernels.library import FLOATS, TYPES, check, native, row_stride
from moonshard.kernels.pool import Pool
from moonshard.kernels.structs import Matrices

_PANEL = 32  # outputs; native/layout.h
_STEP_BYTES = 128  # of a panel for each two inputs


class Bf16Linear:
    """A BF16 matrix [outputs, inputs], or `num` of them that each have their own part of x and y (heads).

    Shape suffixes: M rows, H matrices, N outputs, K inputs. Takes the published size, outputs rounded up to 32
    and inputs to 2; the published tensor need not stay.
    """

    def __init__(self, outputs: int, inputs: int, num: int = 1) -> None:
        self.outputs, self.inputs, self.num = outputs, inputs, num
        self._panel_bytes = (inputs + 1) // 2 * _STEP_BYTES
        self._matrix_bytes = -(-outputs // _PANEL) * self._panel_bytes
        self._panels = torch.empty(num * self._matrix_bytes, dtype=torch.uint8)
        native().ms_advise_huge(self._panels.data_ptr(), self.resident_bytes)
        # For the fused calls; valid as long as this object.
        self.native = Matrices(self._panels.data_ptr(), num, outputs, inputs)

    @classmethod
    def pack(cls, pool: Pool, weight_NK: torch.Tensor) -> "Bf16Linear":
        """One matrix, loaded."""
        packed = cls(*weight_NK.shape)
        packed.load(pool, weight_NK)
        return packed

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights."""
        return self._panels.numel()

    def load(self, pool: Pool, weight_NK: torch.Tensor, index: int = 0, first_output: int = 0) -> None:
        """Put bfloat16 rows (at any stride) in place as outputs first_output .. first_output + N of matrix `index`.

        Matrices that read the same x become one this way. `first_output` is a multiple of 32, and so is N unless these
        are the last outputs. ValueError.
        """
        stride = row_stride("weight", weight_NK, (torch.bfloat16,), self.inputs)
        end = first_output + weight_NK.shape[0]
        if not 0 <= index < self.num:
            raise ValueError(f"index: expected 0..{self.num - 1}, found {index}")
        if first_output % _PANEL or end > self.outputs or (end % _PANEL and end != self.outputs):
            span = f"{first_output}..{end} of {self.outputs}"
            raise ValueError(f"weight: outputs {span} do not fall on multiples of {_PANEL}")
        target = self._panels.data_ptr() + index * self._matrix_bytes + first_output // _PANEL * self._panel_bytes
        check(native().ms_pack(pool.handle, weight_NK.data_ptr(), stride, target, weight_NK.shape[0], self.inputs))

    def forward(
        self, pool: Pool, x: torch.Tensor, out: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """x [M, K] (or [M, H, K]) float32 or bfloat16; result [M, N] (or [M, H, N]) of `dtype`, or of `out`'s.

        Products are exact, sums are FP32, in an order that depends on K alone. Rows and matrices of x and out lie at
        any stride; out must not overlap x. ValueError for other shapes or types.
        """
        shape = (x.shape[0], self.outputs) if x.dim() == 2 else (x.shape[0], self.num, self.outputs)
        y = torch.empty(shape, dtype=dtype) if out is None else out
        if tuple(y.shape) != shape:
            raise ValueError(f"out: expected {list(shape)}, found {list(y.shape)}")
        x_stride, x_next = self._strides("x", x, self.inputs)
        y_stride, y_next = self._strides("out", y, self.outputs)
        # fmt: off
        check(native().ms_multiply(
            pool.handle, self._panels.data_ptr(), self.num, self.outputs, self.inputs,
            x.data_ptr(), TYPES[x.dtype], x_stride, x_next, y.data_ptr(), TYPES[y.dtype], y_stride, y_next, x.shape[0],
        ))
        # fmt: on
        return y

    def _strides(self, name: str, tensor: torch.Tensor, columns: int) -> tuple[int, int]:
        """Elements from row to row and from matrix to matrix."""
        if tensor.dim() == 2 and self.num == 1:
            return row_stride(name, tensor, FLOATS, columns), 0
        if tensor.dim() != 3 or tensor.shape[1] != self.num:
            raise ValueError(f"{name}: expected [rows, {self.num}, {columns}], found {list(tensor.shape)}")
        row_stride(name, tensor[:, 0], FLOATS, columns)
        return tensor.stride(0), tensor.stride(1)
