// The C interface of the fused calls. The structs are laid out as kernels/structs.py declares them.
// Returns 0, or -1 when memory ran out.
#include "block.h"
#include "guarded.h"

using namespace moonshard;

extern "C" {

// Sizes of Matrices, Operand, Gate, AttentionLayer, Cache, Step: what the other side of the interface checks.
void ms_struct_sizes(int64_t* sizes) {
    const size_t all[] = {sizeof(Matrices), sizeof(Operand), sizeof(Gate), sizeof(AttentionLayer), sizeof(Cache), sizeof(Step)};
    for (const size_t size : all) *sizes++ = static_cast<int64_t>(size);
}

int32_t ms_attention_block(Pool* pool, const AttentionLayer* layer, const Cache* cache, const Step* step, const Operand* x,
                           const Operand* h, int32_t products, int32_t* ids, float* weights) {
    return guarded(pool, [&] {
        attention_block(*pool, *layer, *cache, *step, *x, static_cast<Type>(products), {*h, ids, weights});
    });
}

// q [rows, heads, latent + rope] FP32 gives its place to the result, FP32 too: the first `latent` of each head.
int32_t ms_attend(Pool* pool, const Cache* cache, const Step* step, float* q, int64_t heads, float scale) {
    return guarded(pool, [&] { attend_all(*pool, *cache, *step, q, heads, scale); });
}

int32_t ms_route(Pool* pool, const Gate* gate, const Operand* x, int64_t rows, int32_t* ids, float* weights) {
    return guarded(pool, [&] { route_all(*pool, *gate, *x, rows, ids, weights); });
}

int32_t ms_swiglu(Pool* pool, const Matrices* gate_up, const Matrices* down, const Operand* h, int64_t rows,
                  const Operand* x) {
    return guarded(pool, [&] { swiglu(*pool, *gate_up, *down, *h, rows, *x); });
}

int32_t ms_norm_multiply(Pool* pool, const float* norm, float eps, const Matrices* matrix, const Operand* x, int64_t rows,
                         int32_t products, const Operand* y) {
    return guarded(pool, [&] { norm_multiply(*pool, norm, eps, *matrix, *x, rows, static_cast<Type>(products), *y); });
}

}  // extern "C"
