"""Native CPU kernels: INT4 experts, BF16 linear layers and feed-forward blocks.

Memory is the limit for few rows, arithmetic (VNNI, BF16 dot products) for many. Plain C++ behind ctypes: tensors go in
as pointers and sizes, nothing links against torch or Python. The best of AVX-512 (VNNI, BF16), AVX2 (with or without
VNNI) and portable C++ is chosen at run time, and all of them give the same bits (subnormal BF16 values apart, which the
processor's BF16 instructions count as zero). A row's result depends on the row alone: not on its neighbours, nor on the
number of rows or threads.

    pool = Pool(num_threads=2)
    experts = Int4Experts(first_expert=0, num_experts=48, width=7168, hidden=2048)
    experts.load(pool, expert=0, name="gate", packed=..., scale=...)
    y_RD = experts.forward(pool, x_RD, topk_ids_RK, topk_weights_RK)
    matrix = Bf16Linear.pack(pool, weight_NK)
    y_MN = matrix.forward(pool, x_MK)

Weights keep their published INT4 or BF16 values. Activations, and the relative error of a K2.5 expert (7168 x 2048) or
matrix (7168 inputs) on normal values against float64; BF16 activations in torch would give 2.8e-3:

| path             | activations                                       | error  |
| ---------------- | ------------------------------------------------- | ------ |
| experts, "int8"  | INT8, an FP32 scale for each 32 (llama.cpp: FP16) | 9.9e-3 |
| experts, "int16" | INT16, an FP32 scale for each 32                  | 4.1e-5 |
| experts, "exact" | FP32, for parity tests                            | 4.2e-7 |
| linear, BF16 x   | BF16 as given, exact products, FP32 sums          | 9e-7   |
| linear, FP32 x   | FP32; the same bits where the values are BF16     | 1.5e-6 |

"int16" takes twice the arithmetic of "int8": as fast for one or two rows, half as fast for many.

It does not know: checkpoints, models, transports. Without the library (no compiler at install) `available()` is False
and the callers keep torch's operators.
"""

from moonshard.kernels.experts import Int4Experts, Precision
from moonshard.kernels.library import available
from moonshard.kernels.linear import Bf16Linear
from moonshard.kernels.pool import Pool

__all__ = ["Bf16Linear", "Int4Experts", "Pool", "Precision", "available"]
