// Rows of activations against one panel of INT4 weights. One sum for each output and row, over groups in ascending
// order, whatever the number of rows: the bits of a row do not depend on its neighbours.
#pragma once
#include "activations.h"

namespace {

constexpr int kPrefetchSteps = 16;

// The panel's step a few ahead; panels follow each other in memory, so the next panel's head comes with it.
inline void prefetch_step(const uint8_t* step) {
    for (int line = 0; line < 9; line++) __builtin_prefetch(step + kPrefetchSteps * moonshard::kStepBytes + line * 64);
}

// One step of a panel, nibbles spread to bytes: word w of the group is at 2w (even inputs) and 2w + 1 (odd inputs).
struct Unpacked {
    Lanes::Bytes weight[2][8];
    Lanes::Float scale[2];
};

inline Lanes::Float load_scale(const uint8_t* step, int half) {
    const uint8_t* scales = step + moonshard::kScaleOffset + half * moonshard::kHalfScaleBytes;
    return Lanes::load_bf16(reinterpret_cast<const uint16_t*>(scales));
}

inline Unpacked unpack(const uint8_t* step) {
    Unpacked out;
    for (int half = 0; half < 2; half++) {
        for (int w = 0; w < 4; w++) {
            const Lanes::Bytes packed = Lanes::load_words(step + half * moonshard::kHalfBytes + 64 * w);
            out.weight[half][2 * w] = Lanes::low_nibbles(packed);
            out.weight[half][2 * w + 1] = Lanes::high_nibbles(packed);
        }
        out.scale[half] = load_scale(step, half);
    }
    return out;
}

// One plane of a row's activations, of one group: integers, hence exact in any order.
inline void add_plane(const Unpacked& panel, const uint8_t* plane, Lanes::Int (&dots)[2]) {
    Lanes::Int odd[2] = {Lanes::zero_int(), Lanes::zero_int()};  // chains of their own: half the latency
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        const Lanes::Int first = Lanes::broadcast(read<int32_t>(plane + 4 * i));
        const Lanes::Int second = Lanes::broadcast(read<int32_t>(plane + 4 * i + 4));
        for (int half = 0; half < 2; half++) {
            dots[half] = Lanes::dot4(dots[half], panel.weight[half][i], first);
            odd[half] = Lanes::dot4(odd[half], panel.weight[half][i + 1], second);
        }
    }
    for (int half = 0; half < 2; half++) dots[half] = Lanes::add(dots[half], odd[half]);
}

// sums += (scale of weights * scale of activations) * (dot - 8 * sum of activations), one row and group, 32 outputs.
// The whole number stays below 2^24 (8 * 32 * 32639): it becomes a float exactly.
template <int Planes>
inline void add_row(const Unpacked& panel, const uint8_t* step, int rows, int row, Lanes::Float (&sums)[2]) {
    const uint8_t* planes = step + row * 32 * Planes;
    const Lanes::Int offset = Lanes::broadcast(read<int32_t>(step + rows * (32 * Planes + 4) + row * 4));
    Lanes::Int dots[2] = {offset, offset};
    add_plane(panel, planes + 32 * (Planes - 1), dots);
    if constexpr (Planes == 2) {
        Lanes::Int high[2] = {Lanes::zero_int(), Lanes::zero_int()};
        add_plane(panel, planes, high);
        for (int half = 0; half < 2; half++) dots[half] = Lanes::add(dots[half], Lanes::times_256(high[half]));
    }
    const Lanes::Float scale = Lanes::broadcast(read<float>(step + rows * 32 * Planes + row * 4));
    for (int half = 0; half < 2; half++) {
        sums[half] = Lanes::fma(Lanes::to_float(dots[half]), Lanes::mul(panel.scale[half], scale), sums[half]);
    }
}

// Up to four rows: the sums stay in registers, memory is the limit.
template <int Planes, int Rows>
inline void whole_few(const uint8_t* panel, const uint8_t* tile, int64_t groups, float* out) {
    Lanes::Float sums[Rows][2];
    for (auto& row : sums) row[0] = row[1] = Lanes::zero();
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t* step = panel + g * moonshard::kStepBytes;
        prefetch_step(step);
        const Unpacked unpacked = unpack(step);
#pragma GCC unroll 4
        for (int row = 0; row < Rows; row++) {
            add_row<Planes>(unpacked, tile + g * Rows * (32 * Planes + 8), Rows, row, sums[row]);
        }
    }
    for (int row = 0; row < Rows; row++) {
        Lanes::store(out + row * 32, sums[row][0]);
        Lanes::store(out + row * 32 + 16, sums[row][1]);
    }
}

// Any number of rows: the unpacked weights stay in registers and every row's sums come by from the cache.
template <int Planes>
inline void whole_many(const uint8_t* panel, const uint8_t* tile, int64_t groups, int rows, float* out) {
    for (int i = 0; i < rows * 32; i += 16) Lanes::store(out + i, Lanes::zero());
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t* step = panel + g * moonshard::kStepBytes;
        prefetch_step(step);
        const Unpacked unpacked = unpack(step);
        for (int row = 0; row < rows; row++) {
            float* own = out + row * 32;
            Lanes::Float sums[2] = {Lanes::load(own), Lanes::load(own + 16)};
            add_row<Planes>(unpacked, tile + g * rows * (32 * Planes + 8), rows, row, sums);
            Lanes::store(own, sums[0]);
            Lanes::store(own + 16, sums[1]);
        }
    }
}

// sums += scale * (FP32 dot of a group's whole-number weights with FP32 activations), `Rows` rows from `first` on of a
// tile of `rows`, 16 outputs.
template <int Rows>
inline void exact_half(const uint8_t* panel, const uint8_t* tile, int64_t groups, int rows, int first, int half,
                       float* out) {
    Lanes::Float sums[Rows];
    for (auto& sum : sums) sum = Lanes::zero();
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t* step = panel + g * moonshard::kStepBytes;
        const uint8_t* x = tile + (g * rows + first) * 128;
        Lanes::Float dots[Rows];
        for (auto& dot : dots) dot = Lanes::zero();
        for (int w = 0; w < 4; w++) {
            const Lanes::Bytes packed = Lanes::load_words(step + half * moonshard::kHalfBytes + 64 * w);
            for (int i = 0; i < 8; i++) {
                const Lanes::Float weight = Lanes::nibble(packed, i);
                for (int row = 0; row < Rows; row++) {
                    const Lanes::Float one = Lanes::broadcast(read<float>(x + row * 128 + (8 * w + i) * 4));
                    dots[row] = Lanes::fma(weight, one, dots[row]);
                }
            }
        }
        for (int row = 0; row < Rows; row++) sums[row] = Lanes::fma(load_scale(step, half), dots[row], sums[row]);
    }
    for (int row = 0; row < Rows; row++) Lanes::store(out + (first + row) * 32 + half * 16, sums[row]);
}

inline void exact_tile(const uint8_t* panel, const uint8_t* tile, int64_t groups, int rows, float* out) {
    for (int half = 0; half < 2; half++) {
        int row = 0;
        for (; row + 4 <= rows; row += 4) exact_half<4>(panel, tile, groups, rows, row, half, out);
        for (; row < rows; row++) exact_half<1>(panel, tile, groups, rows, row, half, out);
    }
}

// The same sums for instruction sets with few registers: one half of the panel, `Rows` rows from `first` on, and no more
// than one word's weights at a time.
template <int Planes, int Rows>
inline void whole_narrow(const uint8_t* panel, const uint8_t* tile, int64_t groups, int rows, int first, int half,
                         float* out) {
    Lanes::Float sums[Rows];
    for (auto& sum : sums) sum = Lanes::zero();
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t* step = panel + g * moonshard::kStepBytes;
        const uint8_t* x = tile + g * rows * (32 * Planes + 8);
        if (half == 0 && first == 0) prefetch_step(step);
        Lanes::Int whole[Rows];
        for (int row = 0; row < Rows; row++) {
            whole[row] = Lanes::broadcast(read<int32_t>(x + rows * (32 * Planes + 4) + (first + row) * 4));
        }
        for (int plane = 0; plane < Planes; plane++) {
            Lanes::Dots dots[Rows];
            for (auto& dot : dots) dot = Lanes::no_dots();
#pragma GCC unroll 4
            for (int w = 0; w < 4; w++) {
                const Lanes::Bytes packed = Lanes::load_words(step + half * moonshard::kHalfBytes + 64 * w);
                const Lanes::Bytes even = Lanes::low_nibbles(packed), odd = Lanes::high_nibbles(packed);
#pragma GCC unroll 4
                for (int row = 0; row < Rows; row++) {
                    const uint8_t* eight = x + ((first + row) * Planes + plane) * 32 + 8 * w;
                    dots[row] = Lanes::add_dots(dots[row], even, Lanes::broadcast(read<int32_t>(eight)));
                    dots[row] = Lanes::add_dots(dots[row], odd, Lanes::broadcast(read<int32_t>(eight + 4)));
                }
            }
            for (int row = 0; row < Rows; row++) {
                const Lanes::Int part = Lanes::total(dots[row]);
                whole[row] = Lanes::add(whole[row], plane + 1 < Planes ? Lanes::times_256(part) : part);
            }
        }
        const Lanes::Float scale = load_scale(step, half);
        for (int row = 0; row < Rows; row++) {
            const Lanes::Float scale_x = Lanes::broadcast(read<float>(x + rows * 32 * Planes + (first + row) * 4));
            sums[row] = Lanes::fma(Lanes::to_float(whole[row]), Lanes::mul(scale, scale_x), sums[row]);
        }
    }
    for (int row = 0; row < Rows; row++) Lanes::store(out + (first + row) * 32 + half * 16, sums[row]);
}

template <int Planes>
inline void narrow_tile(const uint8_t* panel, const uint8_t* tile, int64_t groups, int rows, float* out) {
    for (int half = 0; half < 2; half++) {
        int row = 0;
        for (; row + 4 <= rows; row += 4) whole_narrow<Planes, 4>(panel, tile, groups, rows, row, half, out);
        for (; row + 2 <= rows; row += 2) whole_narrow<Planes, 2>(panel, tile, groups, rows, row, half, out);
        for (; row < rows; row++) whole_narrow<Planes, 1>(panel, tile, groups, rows, row, half, out);
    }
}

template <int Planes>
inline void wide_tile(const uint8_t* panel, const uint8_t* tile, int64_t groups, int rows, float* out) {
    switch (rows) {
        case 1: return whole_few<Planes, 1>(panel, tile, groups, out);
        case 2: return whole_few<Planes, 2>(panel, tile, groups, out);
        case 3: return whole_few<Planes, 3>(panel, tile, groups, out);
        case 4: return whole_few<Planes, 4>(panel, tile, groups, out);
        default: return whole_many<Planes>(panel, tile, groups, rows, out);
    }
}

template <int Planes>
inline void whole_tile(const uint8_t* panel, const uint8_t* tile, int64_t groups, int rows, float* out) {
    if constexpr (Lanes::kWide) {
        wide_tile<Planes>(panel, tile, groups, rows, out);
    } else if (rows == 1) {
        whole_few<Planes, 1>(panel, tile, groups, out);
    } else {
        narrow_tile<Planes>(panel, tile, groups, rows, out);
    }
}

inline void panel_tile(moonshard::Precision precision, const uint8_t* panel, const uint8_t* tile, int64_t groups,
                       int rows, float* out) {
    switch (precision) {
        case moonshard::kInt8: return whole_tile<1>(panel, tile, groups, rows, out);
        case moonshard::kInt16: return whole_tile<2>(panel, tile, groups, rows, out);
        case moonshard::kExact: return exact_tile(panel, tile, groups, rows, out);
    }
}

}  // namespace
