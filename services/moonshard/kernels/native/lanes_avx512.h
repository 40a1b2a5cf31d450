// Sixteen lanes as one AVX-512 register. Included by ISA translation units only, inside an anonymous namespace's file.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace {

struct Lanes {
    using Int = __m512i;    // 16 x int32
    using Float = __m512;   // 16 x float
    using Bytes = __m512i;  // 64 x uint8: four consecutive inputs for each of 16 outputs
    using Pairs = __m512i;  // 32 x bfloat16

    static constexpr int kPairRows = 12;  // 2 sums a row in a tile of pairs

    static constexpr bool kWide = true;  // 32 registers of 16 lanes

    static Int load_ints(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static Int zero_int() { return _mm512_setzero_si512(); }
    static Float zero() { return _mm512_setzero_ps(); }
    static Int broadcast(int32_t v) { return _mm512_set1_epi32(v); }
    static Float broadcast(float v) { return _mm512_set1_ps(v); }
    static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
    static Int times_256(Int a) { return _mm512_slli_epi32(a, 8); }
    static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
    static Float load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }

    static float sum(Float a) {
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }

    static Bytes load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static Bytes low_nibbles(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
    static Bytes high_nibbles(Bytes a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }

    // acc + sum of four products of unsigned weights and signed activations, per lane; integers, hence exact.
    static Int dot4(Int acc, Bytes weights, Int activations) { return _mm512_dpbusd_epi32(acc, weights, activations); }

    using Dots = Int;
    static Dots no_dots() { return zero_int(); }
    static Dots add_dots(Dots acc, Bytes weights, Int activations) { return dot4(acc, weights, activations); }
    static Int total(Dots dots) { return dots; }

    // The nibble `index` of each lane's word as a float in -8..7; the permutation reads the low four bits only.
    static Float nibble(Bytes words, int index) {
        const Float values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        return _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * index), values);
    }

    static Float load_bf16(const uint16_t* p) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }

    static Pairs load_pairs(const uint16_t* p) { return _mm512_loadu_si512(p); }

    static Pairs broadcast_pair(int32_t pair) { return _mm512_set1_epi32(pair); }
    static Float odd(Pairs a) {
        return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
    }
    static Float even(Pairs a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }

    // acc + the products of 16 pairs, odd elements first, each a fused multiply-add.
    static Float dot2(Float acc, Pairs a, Pairs b) {
#ifdef __AVX512BF16__
        return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else
        return fma(even(a), even(b), fma(odd(a), odd(b), acc));
#endif
    }
};

}  // namespace
