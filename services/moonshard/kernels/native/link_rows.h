// Arithmetic on a link's rows: sums in shard order, rounding to the wire's type. The same bits on every instruction set:
// additions of one element keep their order, and nothing is fused.
#pragma once
#include <stdint.h>

namespace moonshard {

// y_D = 0 + rows[0] + rows[1] + ..., in that order. The zero first makes -0.0 the same in every transport.
void sum_fp32(const uint8_t* const* rows, int64_t num_rows, float* y_D, int64_t d);
void sum_bf16(const uint8_t* const* rows, int64_t num_rows, float* y_D, int64_t d);
// As torch rounds: to nearest, ties to even; a NaN stays one.
void round_to_bf16(const float* from, uint16_t* to, int64_t count);

}  // namespace moonshard
