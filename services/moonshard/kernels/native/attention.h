// Absorbed latent attention (specification 2.3) of a step's rows over the paged cache of one layer.
#pragma once
#include "rows.h"

namespace moonshard {

// Of a step, the same for all layers. Rows of one sequence lie in ascending positions; each sees the keys at positions
// 0..visible - 1 of its sequence, its own included.
struct Step {
    int64_t rows;
    const float* rotations;   // [rows, rope]: cos, sin of each pair
    const int32_t* written;   // [rows]: the slot of the row's own token
    const int32_t* sequence;  // [rows]: line of block_table
    const int32_t* visible;   // [rows], at least 1
    const int32_t* block_table;  // [sequences, table_stride]
    int64_t table_stride, block_size;
};

struct Cache {
    uint8_t* slots;  // [slots, latent + rope]
    Type type;
    int64_t latent, rope;

    int64_t width() const { return latent + rope; }
    uint8_t* slot(int64_t index) const { return slots + index * width() * (type == kBfloat16 ? 2 : 4); }
};

// Softmax sums of heads so far: `o` in rows of `stride`, and two numbers each.
struct HeadSums {
    float *o, *peaks, *totals;
    int64_t stride;

    static HeadSums take(Carver& memory, int64_t heads, int64_t latent) {
        const int64_t stride = (latent + 15) / 16 * 16;  // whole vectors
        float* o = memory.take<float>(heads * stride);
        float* peaks = memory.take<float>(heads);
        return {o, peaks, memory.take<float>(heads), stride};
    }
};

// Of rows first..first + rows of the step, those without `first` in front.
struct Queries {
    int64_t first, rows, heads;
    float* q;  // [rows, heads, latent + rope]; the result takes its place: [rows, heads, width] of which `latent` count
    HeadSums sums;  // scratch of rows * heads
    Type result;
};

// Throws std::bad_alloc.
void attend(Pool& pool, const Cache& cache, const Step& step, const Queries& queries, float scale);

// All rows of the step at once, FP32 result.
void attend_all(Pool& pool, const Cache& cache, const Step& step, float* q, int64_t heads, float scale);

}  // namespace moonshard
