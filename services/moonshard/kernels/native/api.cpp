// The C interface that Python loads. Sizes and types are checked there; here, only what may fail: memory.
// Returns 0, or -1 when memory ran out.
#include <sys/mman.h>

#include "experts.h"
#include "guarded.h"
#include "matrix.h"
#include "repack.h"

using namespace moonshard;

extern "C" {

// Marks the library with its sources' hash; build.py looks for it.
const char* ms_stamp() { return MOONSHARD_STAMP; }

const char* ms_isa(const char* name) {
    const Isa* isa = find_isa(name);
    return isa == nullptr ? nullptr : isa->name;
}

// Null when the instruction set cannot run here, or no thread or memory is to be had.
Pool* ms_pool_new(int32_t num_threads, const char* isa_name) {
    const Isa* isa = find_isa(isa_name);
    if (isa == nullptr) return nullptr;
    try {
        return new Pool(num_threads, *isa);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void ms_pool_free(Pool* pool) { delete pool; }

int32_t ms_repack(Pool* pool, const int32_t* words, const uint16_t* scales, int64_t outputs, int64_t inputs, uint8_t* to,
                  int64_t panel_stride) {
    return guarded(pool, [&] { repack(*pool, {words, scales, outputs, inputs}, to, panel_stride); });
}

int32_t ms_experts(Pool* pool, const uint8_t* panels, int64_t width, int64_t hidden, int64_t first, int64_t experts,
                   const void* x, int32_t x_type, int64_t x_stride, int64_t rows, const void* ids, int32_t wide_ids,
                   const float* weights, int64_t slots, float* y, int64_t y_stride, int32_t precision,
                   const int32_t* local, int32_t apart) {
    const Layer layer{panels, width, hidden};
    const Batch batch{x, static_cast<Type>(x_type), x_stride, y, y_stride, static_cast<Precision>(precision)};
    const Routing routing{ids, wide_ids != 0, weights, rows, slots, first, experts, local, apart != 0};
    return guarded(pool, [&] { forward(*pool, layer, batch, routing); });
}

int32_t ms_pack(Pool* pool, const uint16_t* weights, int64_t stride, uint8_t* panels, int64_t outputs, int64_t inputs) {
    return guarded(pool, [&] { pack(*pool, weights, stride, {panels, 1, outputs, inputs}); });
}

int32_t ms_multiply(Pool* pool, uint8_t* panels, int64_t count, int64_t outputs, int64_t inputs, void* x, int32_t x_type,
                    int64_t x_stride, int64_t x_next, void* y, int32_t y_type, int64_t y_stride, int64_t y_next,
                    int64_t rows) {
    return guarded(pool, [&] {
        multiply(*pool, {panels, count, outputs, inputs}, {x, static_cast<Type>(x_type), x_stride, x_next},
                 {y, static_cast<Type>(y_type), y_stride, y_next}, rows);
    });
}

// Asks for large pages over the whole pages within; a refusal costs speed only.
void ms_advise_huge(void* data, int64_t bytes) {
    const uintptr_t page = 2 << 20, begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// Limits of the machine, over all threads of the pool.
uint64_t ms_read_all(Pool* pool, const uint8_t* data, int64_t bytes) {
    constexpr int64_t kPiece = 1 << 20;
    std::atomic<uint64_t> sum{0};
    std::lock_guard<std::mutex> lock(pool->calls);
    pool->run(bytes / kPiece, bytes, [&](int64_t i) { sum += pool->isa.read_all(data + i * kPiece, kPiece); });
    return sum;
}

float ms_peak(Pool* pool, int32_t bf16, int64_t repeats, int64_t items) {
    std::atomic<int64_t> sum{0};
    std::lock_guard<std::mutex> lock(pool->calls);
    pool->run(items, INT64_MAX, [&](int64_t) {
        sum += static_cast<int64_t>(bf16 ? pool->isa.bf16_peak(repeats) : pool->isa.int8_peak(repeats));
    });
    return static_cast<float>(sum);
}

}  // extern "C"
