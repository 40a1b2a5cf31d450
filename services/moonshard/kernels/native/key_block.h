// What attention's inner loop works on: one row's heads against a block of cached tokens.
#pragma once
#include <stdint.h>

#include "layout.h"

namespace moonshard {

constexpr int64_t kKeyBlock = 64;  // blocks begin at absolute positions that are multiples of this: it fixes every sum

// `keys` holds kKeyBlock addresses; those from `count` on are read and left out.
// Cached tokens [latent | rope key], `width` elements each; the first `latent` of them are the values, too.
struct KeyBlock {
    const void* const* keys;
    const void* const* next;  // as many, of the block after: fetched meanwhile; null when in the cache already
    int64_t count;
    Type type;
    int64_t latent, width;
    float scale;  // of scores
};

// Heads of one row, and what is known of their softmax so far. `o` is not divided by `total` yet; its rows have room
// for whole vectors of 16.
struct HeadRows {
    int64_t count;
    const float* q;
    int64_t q_stride;
    float* o;
    int64_t o_stride;
    float *peak, *total;
};

}  // namespace moonshard
