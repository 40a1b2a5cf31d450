"""Native CPU kernels: INT4 experts, BF16 linear layers and feed-forward blocks.

Memory is the limit for few rows, arithmetic (VNNI, BF16 dot products) for many. Plain C++ behind ctypes: tensors go in as
pointers and sizes, nothing links against torch or Python. The best of AVX-512 (VNNI, BF16), AVX2 (with or without VNNI)
and portable C++ is chosen at run time, and all of them give the same bits (subnormal BF16 values apart, which the
processor's BF16 instructions count as zero). A row's result depends on the row alone: not on its neighbours, nor on the
number of rows or threads.

    pool = Pool(num_threads=2)
    experts = Int4Experts(first_expert=0, num_experts=48, width=7168, hidden=2048)
    experts.load(pool, expert=0, name="gate", packed=..., scale=...)
    y_RD = experts.forward(pool, x_RD, topk_ids_RK, topk_weights_RK)
    matrix = Bf16Linear.pack(pool, weight_NK)
    y_MN = matrix.forward(pool, x_MK)

Activations, where weights are exact (their published INT4 or BF16 values):

| path                  | activations                                     | relative error of a layer, normal values |
| --------------------- | ----------------------------------------------- | ---------------------------------------- |
| experts, "int8"       | INT8 and an FP32 scale for each 32 inputs       | about 1e-2 (as llama.cpp's Q8_0)         |
| experts, "exact"      | FP32                                            | about 3e-7                               |
| linear, BF16 x        | BF16 as given, exact products, FP32 sums        | TODO                               |
| linear, FP32 x        | FP32; the same bits where the values are BF16   | TODO                               |

It does not know: checkpoints, models, transports. Without the library (no compiler at install) `available()` is False
and the callers keep torch's operators.
"""

from moonshard.kernels.experts import Int4Experts, Precision
from moonshard.kernels.library import available
from moonshard.kernels.linear import Bf16Linear
from moonshard.kernels.pool import Pool

__all__ = ["Bf16Linear", "Int4Experts", "Pool", "Precision", "available"]
