#include "link_rows.h"

#include <string.h>

#include <algorithm>

// One compiled copy for each width of vectors, chosen by the loader, before sanitizers are up; the rows of a K2.5 token
// take 10 us without.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define EACH_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_WIDTH
#endif

namespace moonshard {

namespace {

constexpr int64_t kColumns = 512;  // of y, which stay in registers' reach while the shards' rows pass

}  // namespace

EACH_WIDTH void sum_fp32(const uint8_t* const* rows, int64_t num_rows, float* y_D, int64_t d) {
    for (int64_t start = 0; start < d; start += kColumns) {
        const int64_t stop = std::min(start + kColumns, d);
        memset(y_D + start, 0, static_cast<size_t>(stop - start) * 4);
        for (int64_t row = 0; row < num_rows; row++) {
            const uint8_t* from = rows[row];
            for (int64_t i = start; i < stop; i++) {
                float value;
                memcpy(&value, from + i * 4, 4);
                y_D[i] += value;
            }
        }
    }
}

EACH_WIDTH void sum_bf16(const uint8_t* const* rows, int64_t num_rows, float* y_D, int64_t d) {
    for (int64_t start = 0; start < d; start += kColumns) {
        const int64_t stop = std::min(start + kColumns, d);
        memset(y_D + start, 0, static_cast<size_t>(stop - start) * 4);
        for (int64_t row = 0; row < num_rows; row++) {
            const uint8_t* from = rows[row];
            for (int64_t i = start; i < stop; i++) {
                uint16_t half;
                memcpy(&half, from + i * 2, 2);
                const uint32_t bits = static_cast<uint32_t>(half) << 16;
                float value;
                memcpy(&value, &bits, 4);
                y_D[i] += value;
            }
        }
    }
}

EACH_WIDTH void round_to_bf16(const float* from, uint16_t* to, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
        to[i] = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
    }
}

}  // namespace moonshard
