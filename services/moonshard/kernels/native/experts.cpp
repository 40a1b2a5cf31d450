#include "experts.h"

#include <string.h>

#include <algorithm>
#include <limits>

namespace moonshard {

namespace {

constexpr int64_t kWaveRows = 512;    // assignments worked on at once: bounds the scratch memory
constexpr int64_t kDownPanels = 4;    // panels of down in one item of work

// Tiles of consecutive experts whose activations fit the scratch memory together.
class Wave {
public:
    Wave(Pool& pool, const Layer& layer, const Batch& batch, const Plan& plan, size_t first, size_t last)
        : pool_(pool), layer_(layer), batch_(batch), plan_(plan), first_(first), last_(last) {
        for (size_t t = first; t < last; t++) {
            if (t == first || plan.tiles[t].expert != plan.tiles[t - 1].expert) experts_.push_back(t);
        }
        experts_.push_back(last);
        const Tile& end = plan.tiles[last - 1];
        const int64_t rows = end.begin + end.rows - plan.tiles[first].begin;
        const int64_t in_bytes = rows * in_row();
        in_ = pool.scratch(in_bytes + rows * hidden_row());
        hidden_ = in_ + in_bytes;
    }

    void run() {
        const int64_t count = num_experts(), rows = static_cast<int64_t>(last_ - first_);
        pool_.run(rows, rows * kTileRowsMax * in_row(), [this](int64_t i) { gather(plan_.tiles[first_ + i]); });
        const int64_t pairs = layer_.in_panels() / 2;
        pool_.run(count * pairs, count * pairs * 2 * layer_.in_panel(), [&](int64_t i) { gate_up(i / pairs, i % pairs); });
        const int64_t chunks = (layer_.down_panels() + kDownPanels - 1) / kDownPanels;
        pool_.run(chunks, count * layer_.down_panels() * layer_.down_panel(), [this](int64_t i) { down(i); });
    }

private:
    int64_t num_experts() const { return static_cast<int64_t>(experts_.size()) - 1; }
    int64_t unit() const { return tile_unit(batch_.precision); }
    int64_t in_row() const { return layer_.width / kGroup * unit(); }
    int64_t hidden_row() const { return layer_.hidden / kGroup * unit(); }
    int64_t offset(const Tile& tile) const { return tile.begin - plan_.tiles[first_].begin; }

    void gather(const Tile& tile) const {
        uint8_t* to = in_ + offset(tile) * in_row();
        const int64_t element = batch_.x_type == kFloat32 ? 4 : 2;
        for (int32_t r = 0; r < tile.rows; r++) {
            const int64_t row = plan_.assignments[tile.begin + r].row;
            const uint8_t* x = static_cast<const uint8_t*>(batch_.x) + row * batch_.x_stride * element;
            pool_.isa.put_row(batch_.precision, x, batch_.x_type, layer_.width / kGroup, to, tile.rows, r);
        }
    }

    // 32 hidden values (one group of down's inputs) of all rows of an expert.
    void gate_up(int64_t e, int64_t pair) const {
        alignas(64) float gate[kTileRowsMax * kPanelRows], up[kTileRowsMax * kPanelRows];
        const uint8_t* panel = layer_.expert(plan_.tiles[experts_[e]].expert) + pair * 2 * layer_.in_panel();
        const int64_t groups = layer_.width / kGroup;
        for (size_t t = experts_[e]; t < experts_[e + 1]; t++) {
            const Tile& tile = plan_.tiles[t];
            const uint8_t* x = in_ + offset(tile) * in_row();
            pool_.isa.panel_tile(batch_.precision, panel, x, groups, tile.rows, gate);
            pool_.isa.panel_tile(batch_.precision, panel + layer_.in_panel(), x, groups, tile.rows, up);
            pool_.isa.silu_mul(gate, up, tile.rows * kPanelRows);
            uint8_t* step = hidden_ + offset(tile) * hidden_row() + pair * tile.rows * unit();
            for (int32_t r = 0; r < tile.rows; r++) {
                pool_.isa.put_row(batch_.precision, gate + r * kPanelRows, kFloat32, 1, step, tile.rows, r);
            }
        }
    }

    // A few panels of outputs for all experts of the wave: each element of y has one thread, which adds in plan order.
    void down(int64_t chunk) const {
        const int64_t from = chunk * kDownPanels, to = std::min(from + kDownPanels, layer_.down_panels());
        for (int64_t e = 0; e < num_experts(); e++) {
            const uint8_t* panels = layer_.expert(plan_.tiles[experts_[e]].expert) + layer_.in_panels() * layer_.in_panel();
            for (size_t t = experts_[e]; t < experts_[e + 1]; t++) {
                for (int64_t p = from; p < to; p++) down_tile(plan_.tiles[t], panels + p * layer_.down_panel(), p);
            }
        }
    }

    void down_tile(const Tile& tile, const uint8_t* panel, int64_t p) const {
        alignas(64) float out[kTileRowsMax * kPanelRows];
        const uint8_t* hidden = hidden_ + offset(tile) * hidden_row();
        pool_.isa.panel_tile(batch_.precision, panel, hidden, layer_.hidden / kGroup, tile.rows, out);
        for (int32_t r = 0; r < tile.rows; r++) {
            const Assignment& to = plan_.assignments[tile.begin + r];
            float* y = batch_.y + to.sum * batch_.y_stride + p * kPanelRows;
            pool_.isa.add_scaled(y, out + r * kPanelRows, to.weight, kPanelRows);
        }
    }

    Pool& pool_;
    const Layer& layer_;
    const Batch& batch_;
    const Plan& plan_;
    size_t first_, last_;
    std::vector<size_t> experts_;  // first tile of each expert, then the end
    uint8_t *in_, *hidden_;        // tiles of activations, in plan order
};

}  // namespace

void forward(Pool& pool, const Layer& layer, const Batch& batch, const Routing& routing) {
    const Plan plan = make_plan(routing, kTileRowsMax);
    for (int64_t row = 0; row < plan.num_sums; row++) {
        memset(batch.y + row * batch.y_stride, 0, layer.width * sizeof(float));
    }
    // Nothing may take the place of an answer that cannot be given.
    for (const int64_t row : plan.absent) {
        std::fill_n(batch.y + row * batch.y_stride, layer.width, std::numeric_limits<float>::quiet_NaN());
    }
    size_t first = 0;
    while (first < plan.tiles.size()) {
        size_t last = first;
        int64_t rows = 0;
        while (last < plan.tiles.size() && (last == first || rows + plan.tiles[last].rows <= kWaveRows)) {
            rows += plan.tiles[last++].rows;
        }
        Wave(pool, layer, batch, plan, first, last).run();
        first = last;
    }
}

}  // namespace moonshard
