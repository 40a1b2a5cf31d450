// Sixteen lanes as two AVX2 registers; needs FMA.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace {

struct Lanes {
    struct Int { __m256i a, b; };
    struct Float { __m256 a, b; };
    struct Bytes { __m256i a, b; };
    struct Pairs { __m256i a, b; };

    static constexpr int kPairRows = 4;  // 2 sums a row in a tile of pairs

    static __m256i half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

    static constexpr bool kWide = false;  // 16 registers of eight lanes

    static Int load_ints(const uint8_t* p) { return {half(p), half(p + 32)}; }
    static Int zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static Float zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Int broadcast(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
    static Float broadcast(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
    static Int add(Int x, Int y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
    static Int times_256(Int x) { return {_mm256_slli_epi32(x.a, 8), _mm256_slli_epi32(x.b, 8)}; }
    static Float mul(Float x, Float y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static Float fma(Float x, Float y, Float z) {
        return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
    }
    static Float to_float(Int x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    static Float load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static void store(float* p, Float x) {
        _mm256_storeu_ps(p, x.a);
        _mm256_storeu_ps(p + 8, x.b);
    }

    static float sum(Float x) {
        const __m256 eight = _mm256_add_ps(x.a, x.b);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }

    static Bytes load_words(const uint8_t* p) { return {half(p), half(p + 32)}; }
    static __m256i low(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
    static Bytes low_nibbles(Bytes x) { return {low(x.a), low(x.b)}; }
    static Bytes high_nibbles(Bytes x) { return {low(_mm256_srli_epi16(x.a, 4)), low(_mm256_srli_epi16(x.b, 4))}; }

    static __m256i dot4(__m256i acc, __m256i weight, __m256i activation) {
#ifdef __AVXVNNI__
        return _mm256_dpbusd_avx_epi32(acc, weight, activation);
#else
        // 2 * 15 * 127 fits int16: the saturation of the first step never happens.
        const __m256i twos = _mm256_maddubs_epi16(weight, activation);
        return _mm256_add_epi32(acc, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)));
#endif
    }
    static Int dot4(Int acc, Bytes weights, Int activations) {
        return {dot4(acc.a, weights.a, activations.a), dot4(acc.b, weights.b, activations.b)};
    }

    // Products of one group, summed as far as they fit: 8 * 2 * 15 * 128 stays within int16.
    using Dots = Int;
    static Dots no_dots() { return zero_int(); }
#ifdef __AVXVNNI__
    static Dots add_dots(Dots acc, Bytes weights, Int activations) { return dot4(acc, weights, activations); }
    static Int total(Dots dots) { return dots; }
#else
    static __m256i add_twos(__m256i acc, __m256i weight, __m256i activation) {
        return _mm256_add_epi16(acc, _mm256_maddubs_epi16(weight, activation));
    }
    static Dots add_dots(Dots acc, Bytes weights, Int activations) {
        return {add_twos(acc.a, weights.a, activations.a), add_twos(acc.b, weights.b, activations.b)};
    }
    static Int total(Dots dots) {
        const __m256i ones = _mm256_set1_epi16(1);
        return {_mm256_madd_epi16(dots.a, ones), _mm256_madd_epi16(dots.b, ones)};
    }
#endif

    static __m256 nibble(__m256i words, int index) {
        const __m256i one = _mm256_and_si256(_mm256_srli_epi32(words, 4 * index), _mm256_set1_epi32(15));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(one, _mm256_set1_epi32(8)));
    }
    static Float nibble(Bytes words, int index) { return {nibble(words.a, index), nibble(words.b, index)}; }

    static __m256 widen(const uint16_t* p) {
        const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
    }
    static Float load_bf16(const uint16_t* p) { return {widen(p), widen(p + 8)}; }

    static Pairs load_pairs(const uint16_t* p) { return {half(p), half(p + 16)}; }
    static __m256 odd(__m256i x) {
        return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
    }
    static __m256 even(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
    static Pairs broadcast_pair(int32_t pair) { return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)}; }
    static Float odd(Pairs x) { return {odd(x.a), odd(x.b)}; }
    static Float even(Pairs x) { return {even(x.a), even(x.b)}; }
    static __m256 dot2(__m256 acc, __m256i x, __m256i y) {
        return _mm256_fmadd_ps(even(x), even(y), _mm256_fmadd_ps(odd(x), odd(y), acc));
    }
    static Float dot2(Float acc, Pairs x, Pairs y) { return {dot2(acc.a, x.a, y.a), dot2(acc.b, x.b, y.b)}; }
};

}  // namespace
