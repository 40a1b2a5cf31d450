#include "attention.h"

#include <algorithm>
#include <limits>

namespace moonshard {

namespace {

constexpr int64_t kTileRows = 8;        // rows of one sequence that share the keys they read
constexpr int64_t kItemsPerThread = 3;  // so that threads end together
constexpr int64_t kHeadStep = 4;

struct RowTile {
    int64_t first, last;  // of the queries' rows
};

class Attention {
public:
    Attention(Pool& pool, const Cache& cache, const Step& step, const Queries& queries, float scale)
        : pool_(pool), cache_(cache), step_(step), queries_(queries), scale_(scale) {
        for (int64_t row = 0; row < queries.rows;) {
            int64_t end = row + 1;
            while (end < queries.rows && end - row < kTileRows && sequence(end) == sequence(row)) end++;
            tiles_.push_back({row, end});
            row = end;
        }
        for (int64_t row = 0; row < queries.rows; row++) keys_ += visible(row);
        const int64_t groups = pool.num_threads() * kItemsPerThread / static_cast<int64_t>(tiles_.size()) + 1;
        group_heads_ = (queries.heads / groups + kHeadStep - 1) / kHeadStep * kHeadStep;
        group_heads_ = std::max(group_heads_, kHeadStep);
    }

    void run() const {
        const int64_t groups = (queries_.heads + group_heads_ - 1) / group_heads_;
        const int64_t work = keys_ * queries_.heads * cache_.width() / 2;  // in bytes that take as long to read
        pool_.run(static_cast<int64_t>(tiles_.size()) * groups, work, [&](int64_t item) {
            const int64_t head = item % groups * group_heads_;
            run_tile(tiles_[item / groups], head, std::min(group_heads_, queries_.heads - head));
        });
    }

private:
    int64_t sequence(int64_t row) const { return step_.sequence[queries_.first + row]; }
    int64_t visible(int64_t row) const { return step_.visible[queries_.first + row]; }
    float* q(int64_t row, int64_t head) const { return queries_.q + (row * queries_.heads + head) * cache_.width(); }
    HeadSums sums(int64_t row, int64_t head) const {
        const int64_t at = row * queries_.heads + head;
        const HeadSums& all = queries_.sums;
        return {all.o + at * all.stride, all.peaks + at, all.totals + at, all.stride};
    }

    void run_tile(const RowTile& tile, int64_t head, int64_t heads) const {
        int64_t longest = 0;
        for (int64_t row = tile.first; row < tile.last; row++) {
            longest = std::max(longest, visible(row));
            clear(sums(row, head), heads);
        }
        const void *keys[kKeyBlock], *next[kKeyBlock];
        find_keys(sequence(tile.first), 0, longest, next);
        for (int64_t begin = 0; begin < longest; begin += kKeyBlock) {
            std::copy_n(next, kKeyBlock, keys);
            const bool more = begin + kKeyBlock < longest;
            if (more) find_keys(sequence(tile.first), begin + kKeyBlock, longest, next);
            for (int64_t row = tile.first; row < tile.last; row++) {
                const int64_t count = std::min(visible(row) - begin, kKeyBlock);
                if (count <= 0) continue;
                const HeadSums to = sums(row, head);
                const bool fetch = more && row == tile.first;
                pool_.isa.attend({keys, fetch ? next : nullptr, count, cache_.type, cache_.latent, cache_.width(), scale_},
                                 {heads, q(row, head), cache_.width(), to.o, to.stride, to.peaks, to.totals});
            }
        }
        for (int64_t row = tile.first; row < tile.last; row++) {
            for (int64_t h = 0; h < heads; h++) put(row, head + h);
        }
    }

    // The block of keys from position `begin` on, filled up with its first to whole.
    void find_keys(int64_t sequence, int64_t begin, int64_t end, const void** keys) const {
        const int32_t* blocks = step_.block_table + sequence * step_.table_stride;
        int64_t block = begin / step_.block_size, offset = begin % step_.block_size, count = 0;
        while (count < std::min(kKeyBlock, end - begin)) {
            keys[count++] = cache_.slot(blocks[block] * step_.block_size + offset);
            if (++offset == step_.block_size) block++, offset = 0;
        }
        std::fill(keys + count, keys + kKeyBlock, keys[0]);
    }

    static void clear(const HeadSums& sums, int64_t heads) {
        std::fill_n(sums.o, heads * sums.stride, 0.0f);
        std::fill_n(sums.peaks, heads, -std::numeric_limits<float>::infinity());
        std::fill_n(sums.totals, heads, 0.0f);
    }

    // The sums over their weights' total, where the query was.
    void put(int64_t row, int64_t head) const {
        const HeadSums done = sums(row, head);
        pool_.isa.scale(done.o, 1.0f / *done.totals, cache_.latent, done.o);
        pool_.isa.put_result(done.o, queries_.result, cache_.latent, q(row, head));
    }

    Pool& pool_;
    const Cache& cache_;
    const Step& step_;
    const Queries& queries_;
    const float scale_;
    std::vector<RowTile> tiles_;
    int64_t keys_ = 0, group_heads_ = 0;
};

}  // namespace

void attend(Pool& pool, const Cache& cache, const Step& step, const Queries& queries, float scale) {
    if (queries.rows > 0) Attention(pool, cache, step, queries, scale).run();
}

void attend_all(Pool& pool, const Cache& cache, const Step& step, float* q, int64_t heads, float scale) {
    const HeadSums sums =
        carve(pool, [&](Carver& memory) { return HeadSums::take(memory, step.rows * heads, cache.latent); });
    attend(pool, cache, step, {0, step.rows, heads, q, sums, kFloat32}, scale);
}

}  // namespace moonshard
