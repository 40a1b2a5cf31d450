// Where numbers lie in memory: the panel of INT4 weights and the tile of activations that meets it.
//
// Panel: 32 outputs by all inputs, one 576-byte step (nine cache lines) for each group of 32 inputs:
//     4 x 64 bytes   outputs 0..15:  word w of the group, as published, for each of 16 outputs
//     4 x 64 bytes   outputs 16..31: the same
//     2 x 32 bytes   BF16 scales of outputs 0..15, then of 16..31
// Size equals the published one: 4 bits for each weight and 16 for each scale.
//
// Tile: `rows` rows of activations, one step for each group of 32 inputs:
//     INT8   rows x 32 int8 (each eight as 0 2 4 6 1 3 5 7: the order of nibbles), rows floats (scale),
//            rows int32 (-8 * sum: what the offset of the unsigned nibbles adds, taken back)
//     INT16  the same with 64 int8 for each row: 32 high parts, then 32 low parts, of 256 * high + low
//     FP32   rows x 32 float
// Panel of BF16 weights: 32 outputs by all inputs, one 128-byte step for each two inputs: the pair of each output.
// Tile of pairs: one step for each two inputs: the pair of each row (odd inputs: the last pair ends with zero).
#pragma once
#include <stdint.h>

namespace moonshard {

constexpr int64_t kGroup = 32;     // inputs that share a scale
constexpr int64_t kPanelRows = 32;  // outputs of a panel
constexpr int64_t kHalfBytes = 256;
constexpr int64_t kScaleOffset = 2 * kHalfBytes;
constexpr int64_t kHalfScaleBytes = 32;
constexpr int64_t kStepBytes = 576;
constexpr int64_t kPairStepBytes = 128;
constexpr int32_t kTileRowsMax = 16;  // of a tile of activations
constexpr int64_t kPairTileRows = 12;  // of a tile of pairs

enum Type : int32_t { kFloat32 = 0, kBfloat16 = 1 };
enum Precision : int32_t { kInt8 = 0, kExact = 1, kInt16 = 2 };

constexpr int64_t panel_bytes(int64_t inputs) { return inputs / kGroup * kStepBytes; }

// Bytes that one row takes in one step of a tile.
constexpr int64_t tile_unit(Precision precision) {
    return precision == kExact ? kGroup * 4 : (precision == kInt8 ? 1 : 2) * kGroup + 4 + 4;
}

}  // namespace moonshard
