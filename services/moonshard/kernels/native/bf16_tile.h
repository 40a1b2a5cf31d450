// Rows of activations against one panel of BF16 weights: 32 outputs by all inputs, in steps of two inputs (layout.h).
//
// Each element of the result is one chain over the inputs in ascending pairs, odd before even, whatever the number of
// rows. BF16 and FP32 activations take the same chain: equal values give equal bits.
#pragma once
#include "activations.h"

namespace {

constexpr int64_t kPairsAhead = 32;  // steps of 128 bytes

struct Bf16Pairs {
    static constexpr int kBytes = 4;  // of one row in a step

    struct Weights {
        Lanes::Pairs pairs[2];
        explicit Weights(const uint8_t* step) {
            for (int half = 0; half < 2; half++) {
                pairs[half] = Lanes::load_pairs(reinterpret_cast<const uint16_t*>(step) + half * 32);
            }
        }
    };
    static void add(const Weights& w, const uint8_t* x, Lanes::Float (&sums)[2]) {
        const Lanes::Pairs pair = Lanes::broadcast_pair(read<int32_t>(x));
        for (int half = 0; half < 2; half++) sums[half] = Lanes::dot2(sums[half], w.pairs[half], pair);
    }
};

struct Float32Pairs {
    static constexpr int kBytes = 8;

    struct Weights {
        Lanes::Float odd[2], even[2];
        explicit Weights(const uint8_t* step) {
            const Bf16Pairs::Weights packed(step);
            for (int half = 0; half < 2; half++) {
                odd[half] = Lanes::odd(packed.pairs[half]);
                even[half] = Lanes::even(packed.pairs[half]);
            }
        }
    };
    static void add(const Weights& w, const uint8_t* x, Lanes::Float (&sums)[2]) {
        const Lanes::Float even = Lanes::broadcast(read<float>(x)), odd = Lanes::broadcast(read<float>(x + 4));
        for (int half = 0; half < 2; half++) {
            sums[half] = Lanes::fma(w.even[half], even, Lanes::fma(w.odd[half], odd, sums[half]));
        }
    }
};

// `Rows` rows from `first` on of a tile of `rows`.
template <class Kind, int Rows>
inline void pair_rows(const uint8_t* panel, const uint8_t* tile, int64_t pairs, int rows, int first, float* out) {
    Lanes::Float sums[Rows][2];
    for (auto& row : sums) row[0] = row[1] = Lanes::zero();
    const uint8_t* x = tile + first * Kind::kBytes;
    for (int64_t k = 0; k < pairs; k++, x += rows * Kind::kBytes) {
        const uint8_t* step = panel + k * moonshard::kPairStepBytes;
        if (first == 0) {
            __builtin_prefetch(step + kPairsAhead * moonshard::kPairStepBytes);
            __builtin_prefetch(step + kPairsAhead * moonshard::kPairStepBytes + 64);
        }
        const typename Kind::Weights w(step);
#pragma GCC unroll 12
        for (int row = 0; row < Rows; row++) Kind::add(w, x + row * Kind::kBytes, sums[row]);
    }
    for (int row = 0; row < Rows; row++) {
        Lanes::store(out + (first + row) * 32, sums[row][0]);
        Lanes::store(out + (first + row) * 32 + 16, sums[row][1]);
    }
}

template <class Kind, int Rows = Lanes::kPairRows>
inline void pair_tile(const uint8_t* panel, const uint8_t* tile, int64_t pairs, int rows, int first, float* out) {
    if constexpr (Rows > 1) {
        if (rows - first < Rows) return pair_tile<Kind, Rows - 1>(panel, tile, pairs, rows, first, out);
    }
    pair_rows<Kind, Rows>(panel, tile, pairs, rows, first, out);
    if (first + Rows < rows) pair_tile<Kind>(panel, tile, pairs, rows, first + Rows, out);
}

inline void bf16_tile(const uint8_t* panel, const uint8_t* tile, moonshard::Type type, int64_t inputs, int rows,
                      float* out) {
    const int64_t pairs = (inputs + 1) / 2;
    if (type == moonshard::kBfloat16) {
        pair_tile<Bf16Pairs>(panel, tile, pairs, rows, 0, out);
    } else {
        pair_tile<Float32Pairs>(panel, tile, pairs, rows, 0, out);
    }
}

}  // namespace
