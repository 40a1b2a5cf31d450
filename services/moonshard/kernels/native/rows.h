// Rows of activations between the products of a fused call: FP32, and rounded to BF16 where the products ask for it.
#pragma once
#include "matrix.h"

namespace moonshard {

// Hands out pieces of one allocation, aligned to cache lines. First without memory, to learn the size.
class Carver {
public:
    explicit Carver(uint8_t* begin) : begin_(begin) {}
    template <class T>
    T* take(int64_t count) {
        uint8_t* piece = begin_ == nullptr ? nullptr : begin_ + used_;
        used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return reinterpret_cast<T*>(piece);
    }
    int64_t used() const { return used_; }

private:
    uint8_t* begin_;
    int64_t used_ = 0;
};

// What `build(Carver&)` makes of the pool's memory for rows. Throws std::bad_alloc.
template <class Build>
auto carve(Pool& pool, const Build& build) {
    Carver measure(nullptr);
    build(measure);
    Carver memory(pool.scratch(measure.used(), Pool::kRows));
    return build(memory);
}

// `rows` rows of `width`, each cut in `parts` (heads).
struct Rows {
    float* wide;
    uint16_t* narrow;  // null: products take FP32
    int64_t width, parts;

    static Rows take(Carver& memory, int64_t rows, int64_t width, Type products, int64_t parts = 1) {
        float* wide = memory.take<float>(rows * width);
        uint16_t* narrow = products == kBfloat16 ? memory.take<uint16_t>(rows * width) : nullptr;
        return {wide, narrow, width, parts};
    }

    float* row(int64_t r) const { return wide + r * width; }

    // Row r is complete: round it if need be.
    void seal(const Isa& isa, int64_t r) const {
        if (narrow != nullptr) isa.put_result(row(r), kBfloat16, width, narrow + r * width);
    }

    Operand plain() const { return {wide, kFloat32, width, width / parts}; }
    Operand sealed() const { return narrow == nullptr ? plain() : Operand{narrow, kBfloat16, width, width / parts}; }
};

}  // namespace moonshard
