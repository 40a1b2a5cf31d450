// What the machine could do at best, for benchmarks: read memory, and multiply with operands in registers.
#pragma once
#include <stdint.h>

namespace {

inline uint64_t read_all(const uint8_t* data, int64_t bytes) {
    Lanes::Int sums[4] = {Lanes::zero_int(), Lanes::zero_int(), Lanes::zero_int(), Lanes::zero_int()};
    for (int64_t i = 0; i + 256 <= bytes; i += 256) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sums[j] = Lanes::add(sums[j], Lanes::load_ints(data + i + 64 * j));
    }
    const Lanes::Int total = Lanes::add(Lanes::add(sums[0], sums[1]), Lanes::add(sums[2], sums[3]));
    return static_cast<uint64_t>(static_cast<int64_t>(Lanes::sum(Lanes::to_float(total))));
}

constexpr int kChains = 12;  // independent sums: enough to hide the latency of a multiply

inline float int8_peak(int64_t repeats) {
    Lanes::Int sums[kChains];
    uint8_t ones[64];
    for (uint8_t& one : ones) one = 1;
    const Lanes::Bytes weight = Lanes::load_words(ones);
    const Lanes::Int four = Lanes::broadcast(0x01020304);
    for (auto& sum : sums) sum = Lanes::zero_int();
    for (int64_t i = 0; i < repeats; i++) {
#pragma GCC unroll 24
        for (int j = 0; j < 2 * kChains; j++) sums[j % kChains] = Lanes::dot4(sums[j % kChains], weight, four);
    }
    Lanes::Int total = Lanes::zero_int();
    for (const auto& sum : sums) total = Lanes::add(total, sum);
    return Lanes::sum(Lanes::to_float(total));
}

inline float bf16_peak(int64_t repeats) {
    Lanes::Float sums[kChains];
    uint16_t ones[32];
    for (uint16_t& one : ones) one = 0x3f80;
    Lanes::Pairs weight = Lanes::load_pairs(ones);
    for (auto& sum : sums) sum = Lanes::zero();
    for (int64_t i = 0; i < repeats; i++) {
#pragma GCC unroll 24
        for (int j = 0; j < 2 * kChains; j++) sums[j % kChains] = Lanes::dot2(sums[j % kChains], weight, weight);
    }
    Lanes::Float total = Lanes::zero();
    for (const auto& sum : sums) total = Lanes::fma(sum, Lanes::broadcast(1.0f), total);
    return Lanes::sum(total);
}

}  // namespace
