// A block of y = x . w^T with BF16 weights as they lie in the checkpoint (row-major, lanes run along the inputs).
//
// Lane l of an element's sum takes the inputs of its residue in ascending order; the sixteen lanes meet in a fixed tree
// at the end. Neither depends on the number of rows, so a row's bits do not depend on its neighbours. Cutting the inputs
// into chunks for the cache parks the lanes in memory and changes no sum.
#pragma once
#include "isa.h"

namespace {

using moonshard::LinearBlock;

constexpr int64_t kChunk = 1024;         // inputs for which a tile of x stays in the first-level cache
constexpr int64_t kCacheBytes = 40960;  // of the first-level cache, for a tile of x
constexpr int64_t kBlockRows = 48;       // rows whose sums may be parked
constexpr int64_t kBlockColumns = 32;    // columns of one call
constexpr int64_t kAhead = 2048;         // elements to prefetch ahead in a row of w

struct Bf16Rows {
    using X = uint16_t;
    using Vector = Lanes::Pairs;
    static constexpr int64_t kStep = 32;
    static Vector load_x(const X* p) { return Lanes::load_pairs(p); }
    static Vector load_w(const uint16_t* p) { return Lanes::load_pairs(p); }
    static Lanes::Float add(Lanes::Float sum, Vector w, Vector x) { return Lanes::dot2(sum, w, x); }
};

struct Float32Rows {
    using X = float;
    using Vector = Lanes::Float;
    static constexpr int64_t kStep = 16;
    static Vector load_x(const X* p) { return Lanes::load(p); }
    static Vector load_w(const uint16_t* p) { return Lanes::load_bf16(p); }
    static Lanes::Float add(Lanes::Float sum, Vector w, Vector x) { return Lanes::fma(w, x, sum); }
};

// One tile's operands: row and column zero of it at input zero.
template <class Kind>
struct Operands {
    const typename Kind::X* x;
    const uint16_t* w;
    int64_t x_stride, w_stride;
};

// The last few inputs, padded with zeros to a whole step.
template <class Kind, class T>
inline typename Kind::Vector load_padded(typename Kind::Vector (*load)(const T*), const T* p, int64_t count) {
    T padded[Kind::kStep] = {};
    __builtin_memcpy(padded, p, count * sizeof(T));
    return load(padded);
}

template <class Kind, int Rows, int Columns>
inline void add_step(const Operands<Kind>& at, int64_t k, int64_t count, Lanes::Float (&sums)[Rows][Columns]) {
    typename Kind::Vector w[Columns];
    const bool whole = count == Kind::kStep;
    for (int n = 0; n < Columns; n++) {
        const uint16_t* p = at.w + n * at.w_stride + k;
        w[n] = whole ? Kind::load_w(p) : load_padded<Kind>(Kind::load_w, p, count);
    }
#pragma GCC unroll 8
    for (int m = 0; m < Rows; m++) {
        const typename Kind::X* p = at.x + m * at.x_stride + k;
        const typename Kind::Vector x = whole ? Kind::load_x(p) : load_padded<Kind>(Kind::load_x, p, count);
#pragma GCC unroll 4
        for (int n = 0; n < Columns; n++) sums[m][n] = Kind::add(sums[m][n], w[n], x);
    }
}

// Adds inputs begin..end to the sums parked in `lanes` ([Rows][Columns][16]; begin 0 starts from zero).
// `ahead` elements further on lies what the next tile reads; 0 where it is in the cache already.
template <class Kind, int Rows, int Columns>
inline void run_linear_tile(const Operands<Kind>& at, int64_t begin, int64_t end, int64_t ahead, float* lanes) {
    Lanes::Float sums[Rows][Columns];
    for (int m = 0; m < Rows; m++) {
        for (int n = 0; n < Columns; n++) {
            sums[m][n] = begin == 0 ? Lanes::zero() : Lanes::load(lanes + (m * Columns + n) * 16);
        }
    }
    int64_t k = begin;
    for (; k + Kind::kStep <= end; k += Kind::kStep) {
        if (ahead != 0) {
            for (int n = 0; n < Columns; n++) __builtin_prefetch(at.w + n * at.w_stride + k + ahead, 0, 2);
        }
        add_step<Kind, Rows, Columns>(at, k, Kind::kStep, sums);
    }
    if (k < end) add_step<Kind, Rows, Columns>(at, k, end - k, sums);
    for (int m = 0; m < Rows; m++) {
        for (int n = 0; n < Columns; n++) Lanes::store(lanes + (m * Columns + n) * 16, sums[m][n]);
    }
}

// The tile instance for `rows`, counting down from `Rows`.
template <class Kind, int Columns, int Rows>
inline void run_linear_rows(const Operands<Kind>& at, int64_t rows, int64_t begin, int64_t end, int64_t ahead,
                            float* lanes) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return run_linear_rows<Kind, Columns, Rows - 1>(at, rows, begin, end, ahead, lanes);
    }
    run_linear_tile<Kind, Rows, Columns>(at, begin, end, ahead, lanes);
}

inline uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline void put_sum(const LinearBlock& b, int64_t m, int64_t n, const float* lanes) {
    const float value = Lanes::sum(Lanes::load(lanes));
    if (b.y_type == moonshard::kFloat32) {
        static_cast<float*>(b.y)[m * b.y_stride + n] = value;
    } else {
        static_cast<uint16_t*>(b.y)[m * b.y_stride + n] = to_bf16(value);
    }
}

// One pass over a block: up to kBlockRows rows from row m0 on, inputs begin..end.
struct Pass {
    int64_t m0, rows, begin, end;
    bool whole;  // all inputs at once: w is read as one stream
};

// `Columns` columns from n on, in tiles of at most `Rows` rows.
template <class Kind, int Rows, int Columns>
inline void run_columns(const LinearBlock& b, const Pass& pass, int64_t n, float* lanes) {
    for (int64_t m = 0; m < pass.rows; m += Rows) {
        const int64_t count = pass.rows - m < Rows ? pass.rows - m : Rows;
        const Operands<Kind> at{static_cast<const typename Kind::X*>(b.x) + (pass.m0 + m) * b.x_stride,
                                b.w + n * b.w_stride, b.x_stride, b.w_stride};
        float* own = lanes + (n * kBlockRows + m * Columns) * 16;
        const int64_t ahead = pass.m0 + m > 0 ? 0 : pass.whole ? kAhead : Columns * b.w_stride;
        run_linear_rows<Kind, Columns, Rows>(at, count, pass.begin, pass.end, ahead, own);
        if (pass.end < b.inputs) continue;
        for (int64_t i = 0; i < count * Columns; i++) {
            put_sum(b, pass.m0 + m + i / Columns, n + i % Columns, own + i * 16);
        }
    }
}

template <class Kind, int Rows, int Columns>
inline void run_pass(const LinearBlock& b, const Pass& pass, float* lanes) {
    int64_t n = 0;
    for (; n + Columns <= b.columns; n += Columns) run_columns<Kind, Rows, Columns>(b, pass, n, lanes);
    for (; n < b.columns; n++) run_columns<Kind, Rows, 1>(b, pass, n, lanes);
}

// The shape of a tile follows from what limits it: memory (few columns, so few streams) or arithmetic.
template <class Kind>
inline void run_shape(const LinearBlock& b, const Pass& pass, float* lanes) {
    if (pass.rows == 1) return run_pass<Kind, 1, 1>(b, pass, lanes);
    if (pass.rows <= Lanes::kFewRows) return run_pass<Kind, Lanes::kFewRows, 2>(b, pass, lanes);
    run_pass<Kind, Lanes::kManyRows, Lanes::kManyColumns>(b, pass, lanes);
}

template <class Kind>
inline void run_block(const LinearBlock& b) {
    alignas(64) float lanes[kBlockRows * kBlockColumns * 16];
    for (int64_t m0 = 0; m0 < b.rows; m0 += kBlockRows) {
        const int64_t rows = b.rows - m0 < kBlockRows ? b.rows - m0 : kBlockRows;
        const int64_t x_bytes = rows * b.inputs * static_cast<int64_t>(sizeof(typename Kind::X));
        const bool whole = rows == 1 || x_bytes <= kCacheBytes;
        const int64_t chunk = whole ? b.inputs : kChunk;
        int64_t begin = 0;
        do {
            const int64_t end = begin + chunk < b.inputs ? begin + chunk : b.inputs;
            run_shape<Kind>(b, {m0, rows, begin, end, whole}, lanes);
            begin = end;
        } while (begin < b.inputs);
    }
}

inline void linear(const LinearBlock& b) {
    if (b.x_type == moonshard::kFloat32) {
        run_block<Float32Rows>(b);
    } else {
        run_block<Bf16Rows>(b);
    }
}

}  // namespace
