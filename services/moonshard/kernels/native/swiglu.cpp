#include <algorithm>

#include "block.h"
#include "rows.h"

namespace moonshard {

namespace {

constexpr int64_t kWaveRows = 256;  // rows worked on at once: bounds the scratch memory

float* row_of(const Operand& x, int64_t row) { return reinterpret_cast<float*>(x.at(0, row, 0)); }

Operand from_row(const Operand& x, int64_t row) { return {x.at(0, row, 0), x.type, x.stride, x.next}; }

struct Space {
    Rows inner;
    float* gates;  // gate and up; then what goes to x
};

}  // namespace

void swiglu(Pool& pool, const Matrices& gate_up, const Matrices& down, const Operand& h, int64_t rows, const Operand& x) {
    const Pool::Alert alert(pool);
    const int64_t most = std::min(rows, kWaveRows), width = down.inputs, hidden = down.outputs;
    const Space space = carve(pool, [&](Carver& memory) {
        const Rows sealed = Rows::take(memory, most, width, h.type);
        return Space{sealed, memory.take<float>(most * std::max(2 * width, hidden))};
    });
    for (int64_t first = 0; first < rows; first += kWaveRows) {
        const int64_t count = std::min(kWaveRows, rows - first);
        multiply(pool, gate_up, from_row(h, first), {space.gates, kFloat32, 2 * width, 0}, count);
        pool.run(count, count * width * 16, [&](int64_t r) {
            float* gate = space.gates + r * 2 * width;
            pool.isa.silu_mul(gate, gate + width, width);
            pool.isa.put_result(gate, kFloat32, width, space.inner.row(r));
            space.inner.seal(pool.isa, r);
        });
        multiply(pool, down, space.inner.sealed(), {space.gates, kFloat32, hidden, 0}, count);
        pool.run(count, count * hidden * 8, [&](int64_t r) {
            pool.isa.add_scaled(row_of(x, first + r), space.gates + r * hidden, 1.0f, hidden);
        });
    }
}

void norm_multiply(Pool& pool, const float* norm, float eps, const Matrices& matrix, const Operand& x, int64_t rows,
                   Type products, const Operand& y) {
    const Pool::Alert alert(pool);
    const Rows normed = carve(pool, [&](Carver& memory) { return Rows::take(memory, rows, matrix.inputs, products); });
    pool.run(rows, rows * matrix.inputs * 8, [&](int64_t r) {
        pool.isa.rms_norm(row_of(x, r), norm, eps, matrix.inputs, normed.row(r));
        normed.seal(pool.isa, r);
    });
    multiply(pool, matrix, normed.sealed(), y, rows);
}

}  // namespace moonshard
