// Rows into tiles, and SiLU. Plain scalar loops that the compiler turns into vectors of the instruction set at hand:
// no step depends on the vector's width, so each gives the same bits everywhere.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

namespace {

template <class T>
inline T read(const uint8_t* p) {
    T value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

inline void load_group(const void* x, moonshard::Type type, int64_t group, float* out) {
    if (type == moonshard::kFloat32) {
        __builtin_memcpy(out, static_cast<const float*>(x) + group * 32, 32 * sizeof(float));
        return;
    }
    const uint16_t* source = static_cast<const uint16_t*>(x) + group * 32;
    for (int i = 0; i < 32; i++) out[i] = float_of(static_cast<uint32_t>(source[i]) << 16);
}

// Largest magnitude as bits: integers order like floats, and infinity and NaN come out on top.
inline uint32_t largest_magnitude(const float* x) {
    uint32_t largest = 0;
    for (int i = 0; i < 32; i++) {
        const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

constexpr uint32_t kInfinity = 0x7f800000u;
constexpr uint32_t kTiny = 0x05000000u;  // 6e-36: below, 127 / magnitude would overflow; such groups count as zero
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest even integer

// Eight quantised values lie as the nibbles of a word do: even inputs, then odd ones.
constexpr int source_of(int i) { return i / 8 * 8 + (i % 8 < 4 ? 2 * (i % 4) : 2 * (i % 4) + 1); }

// Largest whole number of a quantised activation: of one plane of int8, and of two (256 * high + low in -128..127).
constexpr int kPlanesMax = 2;
constexpr float kLargest[kPlanesMax + 1] = {0, 127, 127 * 256 + 127};

// q = round(x * largest / max|x|), scale = max|x| / largest in FP32. An infinity or a NaN makes the whole group NaN.
template <int Planes>
inline void put_group_whole(const float* x, uint8_t* step, int rows, int row) {
    const uint32_t magnitude = largest_magnitude(x);
    const bool finite = magnitude < kInfinity, usable = finite && magnitude > kTiny;
    const float inverse = usable ? kLargest[Planes] / float_of(magnitude) : 0.0f;
    const float scale = usable ? float_of(magnitude) / kLargest[Planes] : finite ? 0.0f : __builtin_nanf("");
    int32_t whole[32];
    int32_t sum = 0;
    for (int i = 0; i < 32; i++) {
        const float value = usable ? x[i] * inverse : 0.0f;
        whole[i] = static_cast<int32_t>(bits_of(value + kRounder) - 0x4b400000u);
        sum += whole[i];
    }
    int8_t* out = reinterpret_cast<int8_t*>(step) + row * 32 * Planes;
    if (Planes == 2) {
        for (int i = 0; i < 32; i++) out[i] = static_cast<int8_t>((whole[source_of(i)] + 128) >> 8);
    }
    for (int i = 0; i < 32; i++) out[(Planes - 1) * 32 + i] = static_cast<int8_t>(whole[source_of(i)]);
    const int32_t offset = -8 * sum;
    __builtin_memcpy(step + rows * 32 * Planes + row * 4, &scale, 4);
    __builtin_memcpy(step + rows * (32 * Planes + 4) + row * 4, &offset, 4);
}

inline void put_row(moonshard::Precision precision, const void* x, moonshard::Type type, int64_t groups, uint8_t* tile,
                    int rows, int row) {
    float group[32];
    for (int64_t g = 0; g < groups; g++) {
        uint8_t* step = tile + g * rows * moonshard::tile_unit(precision);
        load_group(x, type, g, group);
        if (precision == moonshard::kInt8) {
            put_group_whole<1>(group, step, rows, row);
        } else if (precision == moonshard::kInt16) {
            put_group_whole<2>(group, step, rows, row);
        } else {
            __builtin_memcpy(step + row * sizeof group, group, sizeof group);
        }
    }
}

inline uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline void put_result(const float* x, moonshard::Type type, int64_t count, void* y) {
    if (type == moonshard::kFloat32) {
        __builtin_memcpy(y, x, static_cast<size_t>(count) * sizeof(float));
    } else {
        for (int64_t i = 0; i < count; i++) static_cast<uint16_t*>(y)[i] = to_bf16(x[i]);
    }
}

template <class T>
inline void put_pairs_of(const T* x, int64_t inputs, uint8_t* tile, int rows, int row) {
    const int64_t step = 2 * sizeof(T);
    uint8_t* out = tile + row * step;
    for (int64_t k = 0; k + 2 <= inputs; k += 2) __builtin_memcpy(out + k / 2 * rows * step, x + k, step);
    if (inputs % 2 == 0) return;
    const T last[2] = {x[inputs - 1], 0};
    __builtin_memcpy(out + inputs / 2 * rows * step, last, step);
}

inline void put_pairs(const void* x, moonshard::Type type, int64_t inputs, uint8_t* tile, int rows, int row) {
    if (type == moonshard::kFloat32) {
        put_pairs_of(static_cast<const float*>(x), inputs, tile, rows, row);
    } else {
        put_pairs_of(static_cast<const uint16_t*>(x), inputs, tile, rows, row);
    }
}

// exp(x) by 2^n * e^r with |r| <= ln 2 / 2 and a polynomial of degree 7 (Taylor; relative error about 1e-7).
inline float exponential(float x) {
    const float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shifted = __builtin_fmaf(clamped, 1.44269504f, kRounder);
    const float n = shifted - kRounder;
    const float r = __builtin_fmaf(n, -1.42860677e-6f, __builtin_fmaf(n, -0.693145752f, clamped));
    float p = 1.9841270e-4f;
    p = __builtin_fmaf(p, r, 1.3888889e-3f);
    p = __builtin_fmaf(p, r, 8.3333333e-3f);
    p = __builtin_fmaf(p, r, 4.1666667e-2f);
    p = __builtin_fmaf(p, r, 1.6666667e-1f);
    p = __builtin_fmaf(p, r, 0.5f);
    p = __builtin_fmaf(p, r, 1.0f);
    p = __builtin_fmaf(p, r, 1.0f);
    return p * float_of((bits_of(shifted) - 0x4b400000u + 127u) << 23);
}

inline void silu_mul(float* gate, const float* up, int64_t count) {
    for (int64_t i = 0; i < count; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

inline void add_scaled(float* y, const float* x, float weight, int64_t count) {
    for (int64_t i = 0; i < count; i++) y[i] = __builtin_fmaf(weight, x[i], y[i]);
}

}  // namespace
