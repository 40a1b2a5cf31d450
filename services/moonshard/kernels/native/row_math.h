// Small work on one row of activations, all FP32: norm, rotation, sigmoid.
#pragma once
#include "activations.h"
#include "attention_tile.h"

namespace {

// Four times sixteen chains, then one tree: an order that depends on `count` alone.
inline float sum_of_squares(const float* x, int64_t count) {
    Lanes::Float sums[4] = {Lanes::zero(), Lanes::zero(), Lanes::zero(), Lanes::zero()};
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
        for (int v = 0; v < 4; v++) {
            const Lanes::Float part = Lanes::load(x + i + 16 * v);
            sums[v] = Lanes::fma(part, part, sums[v]);
        }
    }
    for (; i < count; i += 16) {
        const Lanes::Float part = load_some(x + i, count - i);
        sums[0] = Lanes::fma(part, part, sums[0]);
    }
    return (Lanes::sum(sums[0]) + Lanes::sum(sums[1])) + (Lanes::sum(sums[2]) + Lanes::sum(sums[3]));
}

// y = x / sqrt(mean(x^2) + eps) * weight
inline void rms_norm(const float* x, const float* weight, float eps, int64_t count, float* y) {
    const float inverse = 1.0f / __builtin_sqrtf(sum_of_squares(x, count) / static_cast<float>(count) + eps);
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * inverse * weight[i];
}

// Pairs (2i, 2i + 1) as complex numbers times (cos, sin) of theirs. Fused by hand: compilers recognise the pattern and
// fuse it where they can, contraction allowed or not.
inline void rotate(const float* x, const float* rotation, int64_t count, float* y) {
    for (int64_t i = 0; i < count; i += 2) {
        const float real = x[i], imaginary = x[i + 1], cosine = rotation[i], sine = rotation[i + 1];
        y[i] = __builtin_fmaf(real, cosine, -(imaginary * sine));
        y[i + 1] = __builtin_fmaf(real, sine, imaginary * cosine);
    }
}

inline void sigmoid(float* x, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] = 1.0f / (1.0f + exponential(-x[i]));
}

inline void scale(const float* x, float factor, int64_t count, float* y) {
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * factor;
}

}  // namespace
