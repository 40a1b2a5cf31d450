// BF16 matrices in panels, and y = x . w^T with them: one, or several of a size each with its own x and y (heads).
#pragma once
#include "pool.h"

namespace moonshard {

struct Matrices {
    uint8_t* panels;
    int64_t count, outputs, inputs;

    int64_t panel_bytes() const { return (inputs + 1) / 2 * kPairStepBytes; }
    int64_t num_panels() const { return (outputs + kPanelRows - 1) / kPanelRows; }  // of one matrix
};

// Strides in elements: from row to row, and from one matrix's operand to the next's.
struct Operand {
    void* data;
    Type type;
    int64_t stride, next;

    uint8_t* at(int64_t matrix, int64_t row, int64_t column) const {
        const int64_t element = type == kBfloat16 ? 2 : 4;
        return static_cast<uint8_t*>(data) + (matrix * next + row * stride + column) * element;
    }
};

// One matrix [outputs, inputs], its rows `stride` elements apart; the last panel is filled up with zeros.
void pack(Pool& pool, const uint16_t* weights, int64_t stride, const Matrices& to);

// Throws std::bad_alloc.
void multiply(Pool& pool, const Matrices& matrices, const Operand& x, const Operand& y, int64_t rows);

}  // namespace moonshard
