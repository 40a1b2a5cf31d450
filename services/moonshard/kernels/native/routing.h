// Which rows each expert works on, in an order that fixes every sum: experts ascending, then rows, then slots.
#pragma once
#include <stdint.h>

#include <vector>

namespace moonshard {

// A routing table [rows, slots]; ids outside first..first+experts belong to others (-1 to nobody). `local`: by id - first,
// where the expert lies, -1: not here; null: in order. `apart`: every pair with an id has a sum of its own, in order.
struct Routing {
    const void* ids;
    bool wide_ids;  // int64, else int32
    const float* weights;
    int64_t rows, slots;
    int64_t first, experts;
    const int32_t* local = nullptr;
    bool apart = false;

    int64_t id(int64_t index) const {
        return wide_ids ? static_cast<const int64_t*>(ids)[index] : static_cast<const int32_t*>(ids)[index];
    }

    int64_t local_id(int64_t index) const {
        const int64_t at = id(index) - first;
        if (at < 0 || at >= experts) return -1;
        return local == nullptr ? at : __atomic_load_n(local + at, __ATOMIC_ACQUIRE);
    }
};

struct Assignment {
    int64_t row, sum;  // of x, of y
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
    int64_t num_sums = 0;         // rows of y
    std::vector<int64_t> absent;  // of them, where the expert is not here though it was asked for
};

// Throws std::bad_alloc.
Plan make_plan(const Routing& routing, int32_t kTileRowsMax);

}  // namespace moonshard
