#include "routing.h"

#include <algorithm>

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
    // Looked up once: other threads may change where experts lie.
    std::vector<int64_t> local(static_cast<size_t>(size));
    int64_t experts = 0;
    for (int64_t i = 0; i < size; i++) {
        local[i] = routing.local_id(i);
        experts = std::max(experts, local[i] + 1);
    }
    std::vector<int64_t> begin(static_cast<size_t>(experts + 1), 0);
    for (const int64_t expert : local)
        if (expert >= 0) begin[expert + 1]++;
    for (int64_t e = 0; e < experts; e++) begin[e + 1] += begin[e];
    Plan plan;
    plan.assignments.resize(static_cast<size_t>(begin[experts]));
    for (int64_t e = 0; e < experts; e++) {
        cut_tiles(e, begin[e], begin[e + 1] - begin[e], tile_rows_max, plan.tiles);
    }
    for (int64_t i = 0; i < size; i++) {
        const int64_t expert = local[i], row = i / routing.slots;
        if (expert >= 0) {
            plan.assignments[begin[expert]++] = {row, routing.apart ? plan.num_sums : row, routing.weights[i]};
        } else if (routing.apart && routing.id(i) >= 0) {
            plan.absent.push_back(plan.num_sums);
        }
        plan.num_sums += routing.id(i) >= 0;
    }
    if (!routing.apart) plan.num_sums = routing.rows;
    return plan;
}

}  // namespace moonshard
