// The router of an MoE layer (specification 2.5), FP32 throughout.
#pragma once
#include "matrix.h"

namespace moonshard {

struct Gate {
    Matrices parts;     // BF16 matrices whose sum is the weight: one, or three for any FP32 weight
    const float* bias;  // [experts], for selection only
    int64_t top_k, num_groups, kept_groups, normalise;
    float scale;

    int64_t experts() const { return parts.outputs; }
    int64_t row() const { return (parts.count + 2) * experts(); }  // of scores
};

// ids, weights [rows, top_k], best first; of equal scores the lower id wins. `scores`: scratch [rows, gate.row()].
// Throws std::bad_alloc.
void route(Pool& pool, const Gate& gate, const Operand& x, int64_t rows, float* scores, int32_t* ids, float* weights);

void route_all(Pool& pool, const Gate& gate, const Operand& x, int64_t rows, int32_t* ids, float* weights);

}  // namespace moonshard
