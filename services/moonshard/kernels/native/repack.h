// From the published INT4 layout (compressed-tensors, pack-quantized) to panels.
#pragma once
#include "pool.h"

namespace moonshard {

struct Published {
    const int32_t* words;    // [outputs, inputs / 8], lowest nibble first, stored as q + 8
    const uint16_t* scales;  // [outputs, inputs / 32], BF16
    int64_t outputs, inputs;  // multiples of 32
};

void repack(Pool& pool, const Published& from, uint8_t* to, int64_t panel_stride);

}  // namespace moonshard
