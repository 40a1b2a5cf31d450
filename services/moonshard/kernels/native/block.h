// The fused calls of a decoder layer: attention with its norms, and SwiGLU; and the head.
#pragma once
#include "attention.h"
#include "gate.h"

namespace moonshard {

struct AttentionLayer {
    const float *input_norm, *q_a_norm, *kv_a_norm, *post_norm;
    Matrices qkv_a;       // [q rank + latent + rope, hidden]
    Matrices q_b;         // [heads * (nope + rope), q rank]
    Matrices w_uk, w_uv;  // for each head: [latent, nope], [value, latent]
    Matrices o;           // [hidden, heads * value]
    Gate gate;            // of a dense layer: without panels
    float eps, latent_eps, scale;

    int64_t hidden() const { return o.outputs; }
    int64_t heads() const { return w_uk.count; }
    int64_t nope() const { return w_uk.inputs; }
    int64_t value() const { return w_uv.outputs; }
    int64_t q_rank() const { return q_b.inputs; }
};

// What comes out of a block. ids and weights are [rows, top_k], null without a gate.
struct Routed {
    Operand h;  // the rows after the second norm, for the layer's experts or MLP
    int32_t* ids;
    float* weights;
};

// x += attention(norm(x)); h = norm(x). x FP32 rows at any stride. `products`: what linear layers take.
// Throws std::bad_alloc.
void attention_block(Pool& pool, const AttentionLayer& layer, const Cache& cache, const Step& step, const Operand& x,
                     Type products, const Routed& out);

// x += down(silu(gate) * up), gate and up stacked [2 * width, hidden]; h decides what the products take.
void swiglu(Pool& pool, const Matrices& gate_up, const Matrices& down, const Operand& h, int64_t rows, const Operand& x);

// y = matrix . norm(x)
void norm_multiply(Pool& pool, const float* norm, float eps, const Matrices& matrix, const Operand& x, int64_t rows,
                   Type products, const Operand& y);

}  // namespace moonshard
