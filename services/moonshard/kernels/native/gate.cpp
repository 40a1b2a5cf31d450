#include "gate.h"

#include <algorithm>
#include <limits>

#include "rows.h"

namespace moonshard {

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// The `count` best of `scores`, best first; of equals the earlier. Each insertion moves the worse ones back.
void find_best(const float* scores, int64_t size, int64_t count, int32_t* best) {
    int64_t found = 0;
    for (int64_t i = 0; i < size; i++) {
        if (found == count && !(scores[i] > scores[best[count - 1]])) continue;
        int64_t place = found < count ? found++ : count - 1;
        for (; place > 0 && scores[i] > scores[best[place - 1]]; place--) best[place] = best[place - 1];
        best[place] = static_cast<int32_t>(i);
    }
}

// -inf outside the groups whose two best experts score highest together; of equals the earlier stays.
void keep_best_groups(const Gate& gate, float* choice, float* sums) {
    const int64_t size = gate.experts() / gate.num_groups;
    for (int64_t g = 0; g < gate.num_groups; g++) {
        int32_t best[2] = {0, 0};
        find_best(choice + g * size, size, std::min<int64_t>(size, 2), best);
        sums[g] = choice[g * size + best[0]] + choice[g * size + best[1]];
    }
    for (int64_t g = 0; g < gate.num_groups; g++) {
        int64_t better = 0;
        for (int64_t i = 0; i < gate.num_groups; i++) better += sums[i] > sums[g] || (sums[i] == sums[g] && i < g);
        if (better >= gate.kept_groups) std::fill_n(choice + g * size, size, kNone);
    }
}

void choose(const Isa& isa, const Gate& gate, float* scores, int32_t* ids, float* weights) {
    const int64_t experts = gate.experts();
    float *choice = scores + gate.parts.count * experts, *sums = choice + experts;
    for (int64_t part = 1; part < gate.parts.count; part++) isa.add_scaled(scores, scores + part * experts, 1.0f, experts);
    isa.sigmoid(scores, experts);
    std::copy_n(gate.bias, experts, choice);
    isa.add_scaled(choice, scores, 1.0f, experts);
    if (gate.num_groups > 1) keep_best_groups(gate, choice, sums);
    find_best(choice, experts, gate.top_k, ids);
    float sum = 0.0f;
    for (int64_t k = 0; k < gate.top_k; k++) sum += scores[ids[k]];
    const float divisor = gate.normalise ? sum + 1e-20f : 1.0f;
    for (int64_t k = 0; k < gate.top_k; k++) weights[k] = scores[ids[k]] / divisor * gate.scale;
}

}  // namespace

void route(Pool& pool, const Gate& gate, const Operand& x, int64_t rows, float* scores, int32_t* ids, float* weights) {
    multiply(pool, gate.parts, x, {scores, kFloat32, gate.row(), gate.experts()}, rows);
    pool.run(rows, rows * gate.experts() * 64, [&](int64_t r) {
        choose(pool.isa, gate, scores + r * gate.row(), ids + r * gate.top_k, weights + r * gate.top_k);
    });
}

void route_all(Pool& pool, const Gate& gate, const Operand& x, int64_t rows, int32_t* ids, float* weights) {
    float* scores = carve(pool, [&](Carver& memory) { return memory.take<float>(rows * gate.row()); });
    route(pool, gate, x, rows, scores, ids, weights);
}

}  // namespace moonshard
