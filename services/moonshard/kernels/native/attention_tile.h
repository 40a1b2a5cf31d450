// Heads of one row against one block of keys: scores, softmax as far as known, weighted sum of the values.
//
// A score is sixteen chains over the width and one tree; a block's weights are summed in sixteen chains and one tree; an
// output element is one chain over the keys. None depends on how many heads or keys share a tile of registers.
#pragma once
#include "activations.h"
#include "key_block.h"

namespace {

constexpr int kHeadTile = Lanes::kWide ? 8 : 2;
constexpr int kKeyTile = 2;    // keys whose scores are found together
constexpr int kValueTile = 2;  // vectors of values that are summed together
constexpr int64_t kBlock = moonshard::kKeyBlock;

inline Lanes::Float load_vector(const float* p) { return Lanes::load(p); }
inline Lanes::Float load_vector(const uint16_t* p) { return Lanes::load_bf16(p); }

// `count` < 16 elements, then zeros.
template <class T>
inline Lanes::Float load_first(const T* p, int64_t count) {
    T padded[16] = {};
    __builtin_memcpy(padded, p, static_cast<size_t>(count) * sizeof(T));
    return load_vector(padded);
}

template <class T>
inline Lanes::Float load_some(const T* p, int64_t count) {
    return count >= 16 ? load_vector(p) : load_first(p, count);
}

template <class T, int Heads>
inline void add_products(const T* const* keys, const moonshard::HeadRows& h, int64_t c, int64_t count,
                         Lanes::Float (&sums)[Heads][kKeyTile]) {
    Lanes::Float key[kKeyTile];
    for (int n = 0; n < kKeyTile; n++) key[n] = load_some(keys[n] + c, count);
#pragma GCC unroll 8
    for (int m = 0; m < Heads; m++) {
        const Lanes::Float q = load_some(h.q + m * h.q_stride + c, count);
#pragma GCC unroll 4
        for (int n = 0; n < kKeyTile; n++) sums[m][n] = Lanes::fma(q, key[n], sums[m][n]);
    }
}

template <class T, int Heads>
inline void score_tile(const moonshard::KeyBlock& b, const moonshard::HeadRows& h, int64_t j, float (*p)[kBlock]) {
    const T *keys[kKeyTile], *next[kKeyTile];
    Lanes::Float sums[Heads][kKeyTile];
    for (int n = 0; n < kKeyTile; n++) {
        keys[n] = static_cast<const T*>(b.keys[j + n]);
        next[n] = static_cast<const T*>((b.next ? b.next : b.keys)[j + n]);
        for (int m = 0; m < Heads; m++) sums[m][n] = Lanes::zero();
    }
    int64_t c = 0;
    for (; c + 16 <= b.width; c += 16) {
        for (int n = 0; n < kKeyTile; n++) __builtin_prefetch(next[n] + c);
        add_products<T, Heads>(keys, h, c, 16, sums);
    }
    if (c < b.width) add_products<T, Heads>(keys, h, c, b.width - c, sums);
    for (int m = 0; m < Heads; m++) {
        for (int n = 0; n < kKeyTile; n++) p[m][j + n] = Lanes::sum(sums[m][n]) * b.scale;
    }
}

// Scores to weights in place; returns what earlier sums are multiplied with now that the peak may be higher.
inline float weigh(float* p, int64_t count, float& peak, float& total) {
    const int64_t padded = (count + 15) / 16 * 16;
    for (int64_t j = count; j < padded; j++) p[j] = -__builtin_inff();
    float tops[16], top = peak;
    for (int i = 0; i < 16; i++) tops[i] = peak;
    for (int64_t j = 0; j < padded; j += 16) {
        for (int i = 0; i < 16; i++) tops[i] = p[j + i] > tops[i] ? p[j + i] : tops[i];
    }
    for (int i = 0; i < 16; i++) top = tops[i] > top ? tops[i] : top;
    for (int64_t j = 0; j < padded; j++) p[j] = exponential(p[j] - top);
    for (int64_t j = count; j < padded; j++) p[j] = 0.0f;
    Lanes::Float sums = Lanes::zero();
    for (int64_t j = 0; j < padded; j += 16) sums = Lanes::fma(Lanes::broadcast(1.0f), Lanes::load(p + j), sums);
    const float correction = exponential(peak - top);
    total = __builtin_fmaf(total, correction, Lanes::sum(sums));
    peak = top;
    return correction;
}

// `Vectors` x 16 elements of the outputs from c on; `count` < 16: the last, partial vector.
template <class T, int Heads, int Vectors>
inline void value_tile(const moonshard::KeyBlock& b, const moonshard::HeadRows& h, int64_t c, int64_t count,
                       const float (*p)[kBlock], const float* corrections) {
    Lanes::Float sums[Heads][Vectors];
    for (int m = 0; m < Heads; m++) {
        for (int n = 0; n < Vectors; n++) {
            const float* o = h.o + m * h.o_stride + c + n * 16;
            sums[m][n] = Lanes::mul(Lanes::load(o), Lanes::broadcast(corrections[m]));
        }
    }
    for (int64_t j = 0; j < b.count; j++) {
        const T* key = static_cast<const T*>(b.keys[j]) + c;
        Lanes::Float value[Vectors];
        for (int n = 0; n < Vectors; n++) value[n] = load_some(key + n * 16, count);
#pragma GCC unroll 8
        for (int m = 0; m < Heads; m++) {
            const Lanes::Float weight = Lanes::broadcast(p[m][j]);
#pragma GCC unroll 4
            for (int n = 0; n < Vectors; n++) sums[m][n] = Lanes::fma(weight, value[n], sums[m][n]);
        }
    }
    for (int m = 0; m < Heads; m++) {
        for (int n = 0; n < Vectors; n++) Lanes::store(h.o + m * h.o_stride + c + n * 16, sums[m][n]);
    }
}

template <class T, int Heads>
inline void attend_tile(const moonshard::KeyBlock& b, const moonshard::HeadRows& h) {
    alignas(64) float p[Heads][kBlock];
    float corrections[Heads];
    for (int64_t j = 0; j < b.count; j += kKeyTile) score_tile<T, Heads>(b, h, j, p);
    for (int m = 0; m < Heads; m++) corrections[m] = weigh(p[m], b.count, h.peak[m], h.total[m]);
    int64_t c = 0;
    for (; c + 16 * kValueTile <= b.latent; c += 16 * kValueTile) {
        value_tile<T, Heads, kValueTile>(b, h, c, 16, p, corrections);
    }
    for (; c + 16 <= b.latent; c += 16) value_tile<T, Heads, 1>(b, h, c, 16, p, corrections);
    if (c < b.latent) value_tile<T, Heads, 1>(b, h, c, b.latent - c, p, corrections);
}

template <class T, int Heads = kHeadTile>
inline void attend_heads(const moonshard::KeyBlock& b, const moonshard::HeadRows& h) {
    if constexpr (Heads > 1) {
        if (h.count < Heads) return attend_heads<T, Heads - 1>(b, h);
    }
    attend_tile<T, Heads>(b, h);
    if (h.count == Heads) return;
    const moonshard::KeyBlock fetched{b.keys, nullptr, b.count, b.type, b.latent, b.width, b.scale};
    attend_heads<T>(fetched, {h.count - Heads, h.q + Heads * h.q_stride, h.q_stride, h.o + Heads * h.o_stride, h.o_stride,
                        h.peak + Heads, h.total + Heads});
}

inline void attend(const moonshard::KeyBlock& keys, const moonshard::HeadRows& heads) {
    if (keys.type == moonshard::kFloat32) {
        attend_heads<float>(keys, heads);
    } else {
        attend_heads<uint16_t>(keys, heads);
    }
}

}  // namespace
