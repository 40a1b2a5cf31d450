#include "block.h"

#include <algorithm>

#include "rows.h"

namespace moonshard {

namespace {

constexpr int64_t kWaveRows = 128;  // rows worked on at once: bounds the scratch memory
constexpr int64_t kCost = 8;        // bytes that take as long to read as one element of a norm or a rotation

// What a wave keeps between its products.
struct Workspace {
    Rows normed, q_a, q_nope, values;
    float *qkv, *q, *queries, *y, *scores;
    HeadSums sums;

    Workspace(Carver& memory, const AttentionLayer& l, const Cache& cache, int64_t rows, Type products)
        : normed(Rows::take(memory, rows, l.hidden(), products)),
          q_a(Rows::take(memory, rows, l.q_rank(), products)),
          q_nope(Rows::take(memory, rows, l.heads() * l.nope(), products, l.heads())),
          values(Rows::take(memory, rows, l.heads() * l.value(), products, l.heads())),
          qkv(memory.take<float>(rows * l.qkv_a.outputs)),
          q(memory.take<float>(rows * l.q_b.outputs)),
          queries(memory.take<float>(rows * l.heads() * cache.width())),
          y(memory.take<float>(rows * l.hidden())),
          scores(memory.take<float>(rows * l.gate.row())),
          sums(HeadSums::take(memory, rows * l.heads(), cache.latent)) {}
};

// Rows first..first + rows of a step through one layer.
class Wave {
public:
    Wave(Pool& pool, const AttentionLayer& layer, const Cache& cache, const Step& step, int64_t first, int64_t rows,
         Type products, const Workspace& space)
        : pool_(pool), l_(layer), cache_(cache), step_(step), first_(first), rows_(rows), products_(products), s_(space) {}

    void run(const Operand& x, const Routed& out) const {
        each(l_.hidden(), [&](int64_t r) { norm(x_row(x, r), l_.input_norm, l_.eps, s_.normed, r); });
        multiply(pool_, l_.qkv_a, s_.normed.sealed(), {s_.qkv, kFloat32, l_.qkv_a.outputs, 0}, rows_);
        each(l_.qkv_a.outputs, [&](int64_t r) {
            norm(s_.qkv + r * l_.qkv_a.outputs, l_.q_a_norm, l_.latent_eps, s_.q_a, r);
            remember(r);
        });
        multiply(pool_, l_.q_b, s_.q_a.sealed(), {s_.q, kFloat32, l_.q_b.outputs, 0}, rows_);
        each(l_.q_b.outputs, [&](int64_t r) { split_query(r); });
        attend_heads();
        multiply(pool_, l_.o, s_.values.sealed(), {s_.y, kFloat32, l_.hidden(), 0}, rows_);
        each(2 * l_.hidden(), [&](int64_t r) { add_and_norm(x_row(x, r), r, out.h); });
        if (l_.gate.parts.panels == nullptr) return;
        const int64_t at = first_ * l_.gate.top_k;
        route(pool_, l_.gate, s_.normed.plain(), rows_, s_.scores, out.ids + at, out.weights + at);
    }

private:
    template <class Task>
    void each(int64_t width, const Task& task) const {
        pool_.run(rows_, rows_ * width * kCost, task);
    }

    float* x_row(const Operand& x, int64_t r) const { return reinterpret_cast<float*>(x.at(0, first_ + r, 0)); }

    void norm(const float* x, const float* weight, float eps, const Rows& to, int64_t r) const {
        pool_.isa.rms_norm(x, weight, eps, to.width, to.row(r));
        to.seal(pool_.isa, r);
    }

    // The token's latent and rope key into its slot. Works in place: nobody needs the raw values again.
    void remember(int64_t r) const {
        float* latent = s_.qkv + r * l_.qkv_a.outputs + l_.q_rank();
        float* key = s_.queries + r * l_.heads() * cache_.width();  // free until split_query
        pool_.isa.rms_norm(latent, l_.kv_a_norm, l_.latent_eps, cache_.latent, key);
        pool_.isa.rotate(latent + cache_.latent, rotation(r), cache_.rope, key + cache_.latent);
        pool_.isa.put_result(key, cache_.type, cache_.width(), cache_.slot(step_.written[first_ + r]));
    }

    const float* rotation(int64_t r) const { return step_.rotations + (first_ + r) * cache_.rope; }

    void split_query(int64_t r) const {
        const int64_t width = l_.nope() + cache_.rope;
        for (int64_t h = 0; h < l_.heads(); h++) {
            const float* q = s_.q + r * l_.q_b.outputs + h * width;
            float* query = s_.queries + (r * l_.heads() + h) * cache_.width();
            pool_.isa.put_result(q, kFloat32, l_.nope(), s_.q_nope.row(r) + h * l_.nope());
            pool_.isa.rotate(q + l_.nope(), rotation(r), cache_.rope, query + cache_.latent);
        }
        s_.q_nope.seal(pool_.isa, r);
    }

    void attend_heads() const {
        const int64_t width = cache_.width(), scaled = products_ == kBfloat16 ? 2 * width : width;
        multiply(pool_, l_.w_uk, s_.q_nope.sealed(), {s_.queries, kFloat32, l_.heads() * width, width}, rows_);
        const Queries queries{first_, rows_, l_.heads(), s_.queries, s_.sums, products_};
        attend(pool_, cache_, step_, queries, l_.scale);
        const Operand latent{s_.queries, products_, l_.heads() * scaled, scaled};
        multiply(pool_, l_.w_uv, latent, s_.values.sealed(), rows_);
    }

    void add_and_norm(float* x, int64_t r, const Operand& h) const {
        pool_.isa.add_scaled(x, s_.y + r * l_.hidden(), 1.0f, l_.hidden());
        pool_.isa.rms_norm(x, l_.post_norm, l_.eps, l_.hidden(), s_.normed.row(r));
        pool_.isa.put_result(s_.normed.row(r), h.type, l_.hidden(), h.at(0, first_ + r, 0));
    }

    Pool& pool_;
    const AttentionLayer& l_;
    const Cache& cache_;
    const Step& step_;
    const int64_t first_, rows_;
    const Type products_;
    const Workspace& s_;
};

}  // namespace

void attention_block(Pool& pool, const AttentionLayer& layer, const Cache& cache, const Step& step, const Operand& x,
                     Type products, const Routed& out) {
    const Pool::Alert alert(pool);
    const int64_t most = std::min(step.rows, kWaveRows);
    const Workspace space =
        carve(pool, [&](Carver& memory) { return Workspace(memory, layer, cache, most, products); });
    for (int64_t first = 0; first < step.rows; first += kWaveRows) {
        const int64_t rows = std::min(kWaveRows, step.rows - first);
        Wave(pool, layer, cache, step, first, rows, products, space).run(x, out);
    }
}

}  // namespace moonshard
