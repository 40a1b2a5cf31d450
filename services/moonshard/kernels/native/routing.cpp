#include "routing.h"

namespace moonshard {

namespace {

// An expert's rows in tiles of nearly equal size: 17 rows are 9 and 8, not 16 and 1.
void cut_tiles(int64_t expert, int64_t begin, int64_t rows, int32_t rows_max, std::vector<Tile>& tiles) {
    const int64_t count = (rows + rows_max - 1) / rows_max;
    for (int64_t i = 0; i < count; i++) {
        const int64_t from = rows * i / count, to = rows * (i + 1) / count;
        tiles.push_back({expert, begin + from, static_cast<int32_t>(to - from)});
    }
}

}  // namespace

Plan make_plan(const Routing& routing, int32_t tile_rows_max) {
    const int64_t size = routing.rows * routing.slots;
    std::vector<int64_t> begin(routing.experts + 1, 0);
    for (int64_t i = 0; i < size; i++) {
        const int64_t expert = routing.local_id(i);
        if (expert >= 0) begin[expert + 1]++;
    }
    for (int64_t e = 0; e < routing.experts; e++) begin[e + 1] += begin[e];
    Plan plan;
    plan.assignments.resize(begin[routing.experts]);
    for (int64_t e = 0; e < routing.experts; e++) {
        cut_tiles(e, begin[e], begin[e + 1] - begin[e], tile_rows_max, plan.tiles);
    }
    for (int64_t i = 0; i < size; i++) {
        const int64_t expert = routing.local_id(i);
        if (expert >= 0) plan.assignments[begin[expert]++] = {i / routing.slots, routing.weights[i]};
    }
    return plan;
}

}  // namespace moonshard
