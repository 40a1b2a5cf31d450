// The fused attention calls over odd shapes, on buffers of exactly the declared size. Part of sanitized.cpp's program.
#include <stdint.h>
#include <string.h>

#include <vector>

#include "block.h"

using namespace moonshard;

extern "C" {
int32_t ms_pack(Pool*, const uint16_t*, int64_t, uint8_t*, int64_t, int64_t);
int32_t ms_attention_block(Pool*, const AttentionLayer*, const Cache*, const Step*, const Operand*, const Operand*, int32_t,
                           int32_t*, float*);
int32_t ms_attend(Pool*, const Cache*, const Step*, float*, int64_t, float);
int32_t ms_route(Pool*, const Gate*, const Operand*, int64_t, int32_t*, float*);
int32_t ms_swiglu(Pool*, const Matrices*, const Matrices*, const Operand*, int64_t, const Operand*);
int32_t ms_norm_multiply(Pool*, const float*, float, const Matrices*, const Operand*, int64_t, int32_t, const Operand*);
void ms_struct_sizes(int64_t*);
}

namespace {

struct Shape {
    int64_t hidden, heads, q_rank, latent, nope, rope, value, experts, groups;
};

struct Values {
    uint32_t state = 5;
    float next() {
        state = state * 1664525u + 1013904223u;
        return static_cast<float>((state >> 8) % 2001) / 1000.0f - 1.0f;
    }
    std::vector<float> floats(int64_t size) {
        std::vector<float> out;
        for (int64_t i = 0; i < size; i++) out.push_back(next());
        return out;
    }
    std::vector<uint16_t> halves(int64_t size) {
        std::vector<uint16_t> out;
        for (const float x : floats(size)) {
            uint32_t bits;
            memcpy(&bits, &x, 4);
            out.push_back(static_cast<uint16_t>(bits >> 16));
        }
        return out;
    }
};

// Packed matrices and the memory behind them.
struct Packed {
    std::vector<uint8_t> panels;
    Matrices matrices;

    Packed(Pool* pool, Values& values, int64_t outputs, int64_t inputs, int64_t count = 1) : matrices{nullptr, count, outputs, inputs} {
        const int64_t bytes = matrices.num_panels() * matrices.panel_bytes();
        panels.resize(static_cast<size_t>(count * bytes));
        matrices.panels = panels.data();
        for (int64_t i = 0; i < count; i++) {
            const auto weights = values.halves(outputs * inputs);
            ms_pack(pool, weights.data(), inputs, panels.data() + i * bytes, outputs, inputs);
        }
    }
};

// Sequences of one token each at 0..2 and around 64, then a prompt of `prompt` tokens; each in blocks of its own.
struct Tokens {
    static constexpr int64_t kBlock = 8;
    std::vector<int32_t> written, sequence, visible, table;
    int64_t stride, slots;

    explicit Tokens(int32_t prompt) : stride((std::max(prompt, 70) + kBlock - 1) / kBlock) {
        const int32_t starts[] = {0, 1, 2, 63, 64, 65};
        int32_t line = 0;
        for (const int32_t start : starts) add(line++, start, 1);
        if (prompt > 0) add(line++, 0, prompt);
        slots = line * stride * kBlock;
        for (int64_t i = 0; i < line * stride; i++) table.push_back(static_cast<int32_t>(i));
    }
    void add(int32_t line, int32_t start, int32_t count) {
        for (int32_t p = start; p < start + count; p++) {
            written.push_back(static_cast<int32_t>(line * stride * kBlock + p));
            sequence.push_back(line);
            visible.push_back(p + 1);
        }
    }
    int64_t rows() const { return static_cast<int64_t>(written.size()); }
    Step step(const float* rotations) const {
        return {rows(), rotations, written.data(), sequence.data(), visible.data(), table.data(), stride, kBlock};
    }
};

class Suite {
public:
    explicit Suite(Pool* pool) : pool_(pool) {}

    void block(const Shape& s, int32_t prompt, Type products, Type cached) {
        const Tokens tokens(prompt);
        const auto rotations = values_.floats(tokens.rows() * s.rope);
        const int64_t width = s.latent + s.rope;
        std::vector<uint8_t> slots(static_cast<size_t>(tokens.slots * width * (cached == kBfloat16 ? 2 : 4)), 0);
        const auto input = values_.floats(s.hidden), q_a = values_.floats(s.q_rank), kv_a = values_.floats(s.latent);
        const auto post = values_.floats(s.hidden), bias = values_.floats(s.experts);
        const Packed qkv_a(pool_, values_, s.q_rank + width, s.hidden), q_b(pool_, values_, s.heads * (s.nope + s.rope), s.q_rank);
        const Packed w_uk(pool_, values_, s.latent, s.nope, s.heads), w_uv(pool_, values_, s.value, s.latent, s.heads);
        const Packed o(pool_, values_, s.hidden, s.heads * s.value), gate(pool_, values_, s.experts, s.hidden, s.groups);
        const AttentionLayer layer{input.data(), q_a.data(), kv_a.data(), post.data(), qkv_a.matrices, q_b.matrices,
                                   w_uk.matrices, w_uv.matrices, o.matrices,
                                   {gate.matrices, bias.data(), 3, s.groups, (s.groups + 1) / 2, 1, 2.0f}, 1e-5f, 1e-6f, 0.3f};
        auto x = values_.floats(tokens.rows() * s.hidden);
        std::vector<uint8_t> h(x.size() * (products == kBfloat16 ? 2 : 4));
        std::vector<int32_t> ids(static_cast<size_t>(tokens.rows() * 3));
        std::vector<float> weights(ids.size());
        const Cache cache{slots.data(), cached, s.latent, s.rope};
        const Step step = tokens.step(rotations.data());
        const Operand rows{x.data(), kFloat32, s.hidden, 0}, out{h.data(), products, s.hidden, 0};
        ms_attention_block(pool_, &layer, &cache, &step, &rows, &out, products, ids.data(), weights.data());
        keep(x), keep(weights), keep(std::vector<float>(ids.begin(), ids.end()));
        auto q = values_.floats(tokens.rows() * s.heads * width);
        ms_attend(pool_, &cache, &step, q.data(), s.heads, 0.3f);
        keep(q);
        ms_route(pool_, &layer.gate, &rows, tokens.rows(), ids.data(), weights.data());
        keep(weights);
        ms_norm_multiply(pool_, input.data(), 1e-5f, &qkv_a.matrices, &rows, 0, products, &rows);
        auto logits = std::vector<float>(static_cast<size_t>(tokens.rows() * qkv_a.matrices.outputs));
        const Operand y{logits.data(), kFloat32, qkv_a.matrices.outputs, 0};
        ms_norm_multiply(pool_, input.data(), 1e-5f, &qkv_a.matrices, &rows, tokens.rows(), products, &y);
        keep(logits);
    }

    void swiglu(int64_t rows, int64_t width, int64_t hidden) {
        const Packed gate_up(pool_, values_, 2 * width, hidden), down(pool_, values_, hidden, width);
        auto x = values_.floats(rows * hidden), h = values_.floats(rows * hidden);
        auto half = values_.halves(rows * hidden);
        const Operand to{x.data(), kFloat32, hidden, 0}, wide{h.data(), kFloat32, hidden, 0}, narrow{half.data(), kBfloat16, hidden, 0};
        ms_swiglu(pool_, &gate_up.matrices, &down.matrices, &wide, rows, &to);
        ms_swiglu(pool_, &gate_up.matrices, &down.matrices, &narrow, rows, &to);
        keep(x);
    }

    std::vector<float> kept;

private:
    void keep(const std::vector<float>& y) { kept.insert(kept.end(), y.begin(), y.end()); }

    Pool* pool_;
    Values values_;
};

}  // namespace

std::vector<float> attention_everything(Pool* pool) {
    int64_t sizes[6];
    ms_struct_sizes(sizes);
    Suite suite(pool);
    const Shape tiny{6, 1, 3, 2, 2, 2, 3, 6, 1}, odd{34, 3, 21, 22, 5, 6, 7, 12, 3}, large{160, 5, 96, 100, 32, 12, 48, 64, 1};
    for (const Type products : {kFloat32, kBfloat16}) {
        for (const Type cached : {kFloat32, kBfloat16}) {
            for (const int32_t prompt : {0, 9}) suite.block(tiny, prompt, products, cached);
            suite.block(odd, 70, products, cached);
        }
        suite.block(large, 150, products, kFloat32);
    }
    for (const int64_t rows : {0, 1, 13, 260}) suite.swiglu(rows, 9, 35);
    suite.swiglu(20, 160, 300);
    return suite.kept;
}
