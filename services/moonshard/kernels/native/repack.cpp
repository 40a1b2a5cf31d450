#include "repack.h"

#include <string.h>

namespace moonshard {

namespace {

// One step: four words and a scale from each of 32 rows. Words keep their bits; they only move.
void put_step(const Published& from, int64_t row, int64_t group, uint8_t* step) {
    for (int64_t r = 0; r < kPanelRows; r++) {
        const int32_t* words = from.words + (row + r) * from.inputs / 8 + group * 4;
        uint8_t* column = step + r / 16 * kHalfBytes + r % 16 * 4;
        for (int w = 0; w < 4; w++) memcpy(column + 64 * w, words + w, 4);
        memcpy(step + kScaleOffset + r * 2, from.scales + (row + r) * from.inputs / kGroup + group, 2);
    }
}

}  // namespace

void repack(Pool& pool, const Published& from, uint8_t* to, int64_t panel_stride) {
    pool.run(from.outputs / kPanelRows, from.outputs * from.inputs, [&](int64_t panel) {
        for (int64_t g = 0; g < from.inputs / kGroup; g++) {
            put_step(from, panel * kPanelRows, g, to + panel * panel_stride + g * kStepBytes);
        }
    });
}

}  // namespace moonshard
