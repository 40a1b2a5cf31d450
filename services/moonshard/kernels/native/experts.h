// The routed experts of one layer over a batch: y[row] = sum of weight * down(silu(gate(x[row])) * up(x[row])).
#pragma once
#include "pool.h"
#include "routing.h"

namespace moonshard {

// An expert's panels: gate 0, up 0, gate 1, up 1, ... then the panels of down. `width` inputs, `hidden` between.
struct Layer {
    const uint8_t* panels;
    int64_t width, hidden;

    int64_t in_panel() const { return panel_bytes(width); }
    int64_t down_panel() const { return panel_bytes(hidden); }
    int64_t in_panels() const { return 2 * hidden / kPanelRows; }
    int64_t down_panels() const { return width / kPanelRows; }
    int64_t expert_bytes() const { return in_panels() * in_panel() + down_panels() * down_panel(); }
    const uint8_t* expert(int64_t e) const { return panels + e * expert_bytes(); }
};

struct Batch {
    const void* x;  // [rows, width], row stride in elements
    Type x_type;
    int64_t x_stride;
    float* y;  // [rows, width], or [pairs, width] where sums are apart
    int64_t y_stride;
    Precision precision;
};

// Throws std::bad_alloc.
void forward(Pool& pool, const Layer& layer, const Batch& batch, const Routing& routing);

}  // namespace moonshard
