#include "matrix.h"

#include <string.h>

#include <algorithm>

namespace moonshard {

namespace {

constexpr int64_t kSpanBytes = 512 * 1024;
constexpr int64_t kSpansPerThread = 4;

constexpr int64_t kPackInputs = 64;  // two cache lines of each row, while they are at hand

void pack_panel(const uint16_t* weights, int64_t stride, const Matrices& to, int64_t panel) {
    uint8_t* out = to.panels + panel * to.panel_bytes();
    const int64_t rows = std::min(kPanelRows, to.outputs - panel * kPanelRows);
    if (rows < kPanelRows || to.inputs % 2 != 0) std::fill_n(out, to.panel_bytes(), uint8_t{0});
    for (int64_t begin = 0; begin < to.inputs; begin += kPackInputs) {
        const int64_t end = std::min(begin + kPackInputs, to.inputs);
        for (int64_t r = 0; r < rows; r++) {
            const uint16_t* row = weights + (panel * kPanelRows + r) * stride;
            uint8_t* column = out + r * 4;
            for (int64_t k = begin; k + 2 <= end; k += 2) memcpy(column + k / 2 * kPairStepBytes, row + k, 4);
            if (end % 2 != 0) memcpy(column + end / 2 * kPairStepBytes, row + end - 1, 2);
        }
    }
}

// One multiplication: rows are cut into nearly equal tiles, the same for every matrix.
class Product {
public:
    Product(Pool& pool, const Matrices& matrices, const Operand& x, const Operand& y, int64_t rows)
        : pool_(pool), matrices_(matrices), x_(x), y_(y), rows_(rows) {
        tiles_ = pool.scratch(matrices.count * rows * row_bytes());
    }

    void run() {
        const int64_t tiles = num_tiles(), panels = matrices_.num_panels(), count = matrices_.count;
        pool_.run(count * tiles, count * rows_ * row_bytes(), [&](int64_t i) { gather(i / tiles, i % tiles); });
        // Spans of panels, so that a thread reads on where it was.
        const int64_t all = count * panels, bytes = std::max<int64_t>(1, matrices_.panel_bytes());
        const int64_t most = std::max<int64_t>(1, kSpanBytes / bytes);
        const int64_t span = std::clamp<int64_t>(all / (pool_.num_threads() * kSpansPerThread), 1, most);
        pool_.run((all + span - 1) / span, all * matrices_.panel_bytes(), [&](int64_t item) {
            for (int64_t i = item * span; i < std::min(all, (item + 1) * span); i++) {
                for (int64_t t = 0; t < tiles; t++) run_tile(i / panels, i % panels, t);
            }
        });
    }

private:
    int64_t row_bytes() const { return (matrices_.inputs + 1) / 2 * (x_.type == kBfloat16 ? 4 : 8); }
    int64_t num_tiles() const { return (rows_ + kPairTileRows - 1) / kPairTileRows; }
    int64_t first_row(int64_t tile) const { return rows_ * tile / num_tiles(); }
    int num_rows(int64_t tile) const { return static_cast<int>(first_row(tile + 1) - first_row(tile)); }
    uint8_t* tile(int64_t matrix, int64_t tile) const {
        return tiles_ + (matrix * rows_ + first_row(tile)) * row_bytes();
    }

    void gather(int64_t matrix, int64_t t) const {
        for (int r = 0; r < num_rows(t); r++) {
            const uint8_t* x = x_.at(matrix, first_row(t) + r, 0);
            pool_.isa.put_pairs(x, x_.type, matrices_.inputs, tile(matrix, t), num_rows(t), r);
        }
    }

    void run_tile(int64_t matrix, int64_t panel, int64_t t) const {
        alignas(64) float out[kPairTileRows * kPanelRows];
        const uint8_t* weights = matrices_.panels + (matrix * matrices_.num_panels() + panel) * matrices_.panel_bytes();
        pool_.isa.bf16_tile(weights, tile(matrix, t), x_.type, matrices_.inputs, num_rows(t), out);
        const int64_t n = panel * kPanelRows, columns = std::min(kPanelRows, matrices_.outputs - n);
        for (int r = 0; r < num_rows(t); r++) {
            pool_.isa.put_result(out + r * kPanelRows, y_.type, columns, y_.at(matrix, first_row(t) + r, n));
        }
    }

    Pool& pool_;
    const Matrices& matrices_;
    const Operand &x_, &y_;
    const int64_t rows_;
    uint8_t* tiles_;
};

}  // namespace

void pack(Pool& pool, const uint16_t* weights, int64_t stride, const Matrices& to) {
    pool.run(to.num_panels(), to.outputs * to.inputs * 2, [&](int64_t panel) { pack_panel(weights, stride, to, panel); });
}

void multiply(Pool& pool, const Matrices& matrices, const Operand& x, const Operand& y, int64_t rows) {
    if (rows > 0) Product(pool, matrices, x, y, rows).run();
}

}  // namespace moonshard
