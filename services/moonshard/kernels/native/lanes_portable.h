// Sixteen lanes as plain arrays: any processor, and the meaning of the other two.
#pragma once
#include <stdint.h>

namespace {

struct Lanes {
    static constexpr int kCount = 16;
    struct Int { int32_t v[kCount]; };
    struct Float { float v[kCount]; };
    struct Bytes { uint8_t v[4 * kCount]; };
    struct Pairs { uint16_t v[2 * kCount]; };

    static constexpr int kPairRows = 2;  // 2 sums a row in a tile of pairs

    template <class T, class F>
    static T each(F value) {
        T out;
        for (int i = 0; i < kCount; i++) out.v[i] = value(i);
        return out;
    }
    template <class T>
    static T copy(const void* p) {
        T out;
        __builtin_memcpy(&out, p, sizeof out);
        return out;
    }
    static float widen(uint16_t bits) {
        const uint32_t word = static_cast<uint32_t>(bits) << 16;
        return copy<float>(&word);
    }

    static constexpr bool kWide = false;

    static Int load_ints(const uint8_t* p) { return copy<Int>(p); }
    static Int zero_int() { return broadcast(0); }
    static Float zero() { return broadcast(0.0f); }
    static Int broadcast(int32_t x) { return each<Int>([&](int) { return x; }); }
    static Float broadcast(float x) { return each<Float>([&](int) { return x; }); }
    static Int add(const Int& x, const Int& y) {  // wraps, as vectors do
        return each<Int>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(x.v[i]) + y.v[i]); });
    }
    static Int times_256(const Int& x) { return each<Int>([&](int i) { return x.v[i] * 256; }); }
    static Float mul(const Float& x, const Float& y) { return each<Float>([&](int i) { return x.v[i] * y.v[i]; }); }
    // A true fused multiply-add even where it is a library call: every path gives the same bits.
    static Float fma(const Float& x, const Float& y, const Float& z) {
        return each<Float>([&](int i) { return __builtin_fmaf(x.v[i], y.v[i], z.v[i]); });
    }
    static Float to_float(const Int& x) { return each<Float>([&](int i) { return static_cast<float>(x.v[i]); }); }
    static Float load(const float* p) { return copy<Float>(p); }
    static void store(float* p, const Float& x) { __builtin_memcpy(p, &x, sizeof x); }

    // Halves onto each other, four times: the tree that the vector paths walk.
    static float sum(Float x) {
        for (int width = kCount / 2; width > 0; width /= 2) {
            for (int i = 0; i < width; i++) x.v[i] += x.v[i + width];
        }
        return x.v[0];
    }

    static Bytes load_words(const uint8_t* p) { return copy<Bytes>(p); }
    static Bytes low_nibbles(Bytes x) {
        for (uint8_t& byte : x.v) byte &= 15;
        return x;
    }
    static Bytes high_nibbles(Bytes x) {
        for (uint8_t& byte : x.v) byte >>= 4;
        return x;
    }
    static Int dot4(Int acc, const Bytes& weights, const Int& activations) {
        int8_t four[4 * kCount];
        __builtin_memcpy(four, &activations, sizeof four);
        for (int i = 0; i < kCount; i++) {
            for (int j = 0; j < 4; j++) acc.v[i] += weights.v[4 * i + j] * four[4 * i + j];
        }
        return acc;
    }
    using Dots = Int;
    static Dots no_dots() { return zero_int(); }
    static Dots add_dots(const Dots& acc, const Bytes& weights, const Int& activations) {
        return dot4(acc, weights, activations);
    }
    static Int total(const Dots& dots) { return dots; }
    static Float nibble(const Bytes& words, int index) {
        const int shift = 4 * (index % 2);
        return each<Float>([&](int i) { return static_cast<float>((words.v[4 * i + index / 2] >> shift & 15) - 8); });
    }

    static Float load_bf16(const uint16_t* p) { return each<Float>([&](int i) { return widen(p[i]); }); }
    static Pairs load_pairs(const uint16_t* p) { return copy<Pairs>(p); }
    static Pairs broadcast_pair(int32_t pair) {
        const Int all = broadcast(pair);
        return copy<Pairs>(&all);
    }
    static Float odd(const Pairs& x) { return each<Float>([&](int i) { return widen(x.v[2 * i + 1]); }); }
    static Float even(const Pairs& x) { return each<Float>([&](int i) { return widen(x.v[2 * i]); }); }
    static Float dot2(const Float& acc, const Pairs& x, const Pairs& y) {
        return fma(even(x), even(y), fma(odd(x), odd(y), acc));
    }
};

}  // namespace
