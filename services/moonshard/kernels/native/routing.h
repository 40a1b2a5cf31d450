// Which rows each expert works on, in an order that fixes every sum: experts ascending, then rows, then slots.
#pragma once
#include <stdint.h>

#include <vector>

namespace moonshard {

// A routing table [rows, slots]; ids outside first..first+experts belong to others (-1 to nobody).
struct Routing {
    const void* ids;
    bool wide_ids;  // int64, else int32
    const float* weights;
    int64_t rows, slots;
    int64_t first, experts;

    int64_t local_id(int64_t index) const {
        const int64_t id = wide_ids ? static_cast<const int64_t*>(ids)[index] : static_cast<const int32_t*>(ids)[index];
        return id >= first && id < first + experts ? id - first : -1;
    }
};

struct Assignment {
    int64_t row;
    float weight;
};

// Up to kTileRowsMax assignments of one expert.
struct Tile {
    int64_t expert;
    int64_t begin;  // its first assignment
    int32_t rows;
};

struct Plan {
    std::vector<Assignment> assignments;
    std::vector<Tile> tiles;
};

// Throws std::bad_alloc.
Plan make_plan(const Routing& routing, int32_t kTileRowsMax);

}  // namespace moonshard
