// What one instruction set offers: the innermost loops, as a table of functions chosen once at run time.
#pragma once
#include <stdint.h>

#include "key_block.h"
#include "layout.h"

namespace moonshard {

struct Isa {
    const char* name;

    // `groups` groups of a row into row `row` of a tile of `rows` rows.
    void (*put_row)(Precision, const void* x, Type, int64_t groups, uint8_t* tile, int rows, int row);
    // out[rows, 32] = tile . panel; rows >= 1.
    void (*panel_tile)(Precision, const uint8_t* panel, const uint8_t* tile, int64_t groups, int rows, float* out);
    // gate = silu(gate) * up
    void (*silu_mul)(float* gate, const float* up, int64_t count);
    // y += weight * x
    void (*add_scaled)(float* y, const float* x, float weight, int64_t count);

    // A row into row `row` of a tile of pairs of `rows` rows.
    void (*put_pairs)(const void* x, Type, int64_t inputs, uint8_t* tile, int rows, int row);
    // out[rows, 32] = tile . panel; rows 1..kPairTileRows.
    void (*bf16_tile)(const uint8_t* panel, const uint8_t* tile, Type, int64_t inputs, int rows, float* out);
    // y = x, rounded to nearest even
    void (*put_result)(const float* x, Type, int64_t count, void* y);

    // Adds a block of keys to what a row's heads have summed; ascending blocks, first peak -inf, total and o zero.
    void (*attend)(const KeyBlock&, const HeadRows&);
    // y = x / sqrt(mean(x^2) + eps) * weight; y may be x
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t count, float* y);
    // Pairs (2i, 2i + 1) times the complex numbers (cos, sin) at the same places; y may not be x.
    void (*rotate)(const float* x, const float* rotation, int64_t count, float* y);
    void (*sigmoid)(float* x, int64_t count);
    // y = factor * x
    void (*scale)(const float* x, float factor, int64_t count, float* y);

    uint64_t (*read_all)(const uint8_t* data, int64_t bytes);  // the memory limit: reads, does nothing
    float (*int8_peak)(int64_t repeats);                        // 24 * 64 multiply-adds for each repeat
    float (*bf16_peak)(int64_t repeats);                        // 24 * 32 multiply-adds for each repeat
};

// Best one this processor can run, or the named one; null when it cannot run that.
const Isa* find_isa(const char* name);

}  // namespace moonshard
