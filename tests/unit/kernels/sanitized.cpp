// Calls every kernel over odd shapes, on buffers of exactly the declared size: address and thread sanitizers do the rest.
// Prints the number of calls; exits 1 when instruction sets or thread counts disagree.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vector>

namespace moonshard {
class Pool;
}
using moonshard::Pool;
extern "C" {
Pool* ms_pool_new(int32_t, const char*);
void ms_pool_free(Pool*);
int32_t ms_repack(Pool*, const int32_t*, const uint16_t*, int64_t, int64_t, uint8_t*, int64_t);
int32_t ms_experts(Pool*, const uint8_t*, int64_t, int64_t, int64_t, int64_t, const void*, int32_t, int64_t, int64_t,
                   const void*, int32_t, const float*, int64_t, float*, int64_t, int32_t, const int32_t*, int32_t);
int32_t ms_pack(Pool*, const uint16_t*, int64_t, uint8_t*, int64_t, int64_t);
int32_t ms_multiply(Pool*, uint8_t*, int64_t, int64_t, int64_t, void*, int32_t, int64_t, int64_t, void*, int32_t, int64_t,
                    int64_t, int64_t);
void ms_advise_huge(void*, int64_t);
uint64_t ms_read_all(Pool*, const uint8_t*, int64_t);
float ms_peak(Pool*, int32_t, int64_t, int64_t);
}

std::vector<float> attention_everything(Pool* pool);  // sanitized_attention.cpp

namespace {

uint32_t state = 1;
uint32_t next() { return state = state * 1664525u + 1013904223u, state >> 8; }
float unit() { return static_cast<float>(next() % 2001) / 1000.0f - 1.0f; }
uint16_t bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return static_cast<uint16_t>(bits >> 16);
}

template <class T, class F>
std::vector<T> filled(int64_t size, F value) {
    std::vector<T> out;
    out.reserve(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; i++) out.push_back(static_cast<T>(value()));
    return out;
}

int calls = 0;

constexpr int64_t kExperts = 3, kSlots = 4;

std::vector<uint8_t> pack(Pool* pool, int64_t width, int64_t hidden) {
    const int64_t in_panel = width / 32 * 576, down_panel = hidden / 32 * 576;
    const int64_t bytes = 3 * width * hidden * 9 / 16;
    std::vector<uint8_t> panels(static_cast<size_t>(kExperts * bytes));
    for (int64_t e = 0; e < kExperts; e++) {
        for (int part = 0; part < 3; part++) {
            const int64_t outputs = part == 2 ? width : hidden, inputs = part == 2 ? hidden : width;
            const auto words = filled<int32_t>(outputs * inputs / 8, [] { return next() << 8 ^ next(); });
            const auto scales = filled<uint16_t>(outputs * inputs / 32, [] { return bf16(unit() / 16); });
            uint8_t* to = panels.data() + e * bytes + (part == 2 ? 2 * hidden / 32 * in_panel : part * in_panel);
            ms_repack(pool, words.data(), scales.data(), outputs, inputs, to, part == 2 ? down_panel : 2 * in_panel);
        }
    }
    return panels;
}

std::vector<float> experts(Pool* pool, const std::vector<uint8_t>& panels, int64_t width, int64_t hidden, int64_t rows,
                           int32_t precision) {
    state = 7;
    const auto x = filled<float>(rows * width, unit);
    const auto ids = filled<int32_t>(rows * kSlots, [] { return static_cast<int32_t>(next() % 6) - 1; });
    const auto weights = filled<float>(rows * kSlots, unit);
    std::vector<float> y(static_cast<size_t>(rows * width));
    ms_experts(pool, panels.data(), width, hidden, 1, kExperts, x.data(), 0, width, rows, ids.data(), 0, weights.data(),
               kSlots, y.data(), width, precision, nullptr, 0);
    calls++;
    return y;
}

// Experts anywhere in memory, one of them absent; an output for each pair.
std::vector<float> experts_apart(Pool* pool, const std::vector<uint8_t>& panels, int64_t width, int64_t hidden,
                                 int64_t rows, int32_t precision) {
    state = 8;
    const int32_t local[] = {2, -1, 0, 1, 1};
    const auto x = filled<float>(rows * width, unit);
    const auto ids = filled<int32_t>(rows * kSlots, [] { return static_cast<int32_t>(next() % 6) - 1; });
    const auto weights = filled<float>(rows * kSlots, unit);
    int64_t pairs = 0;
    for (const int32_t id : ids) pairs += id >= 0;
    std::vector<float> y(static_cast<size_t>(pairs * width));
    ms_experts(pool, panels.data(), width, hidden, 0, 5, x.data(), 0, width, rows, ids.data(), 0, weights.data(), kSlots,
               y.data(), width, precision, local, 1);
    for (float& value : y) value = value == value ? value : 0;  // NaN, which equals nothing, where the expert is absent
    calls++;
    return y;
}

template <class X>
std::vector<float> linear(Pool* pool, int64_t rows, int64_t columns, int64_t inputs) {
    state = 9;
    auto x = filled<X>(rows * inputs, [] { return sizeof(X) == 2 ? static_cast<X>(bf16(unit())) : static_cast<X>(unit()); });
    const auto w = filled<uint16_t>(columns * inputs, [] { return bf16(unit()); });
    std::vector<uint8_t> panels(static_cast<size_t>((columns + 31) / 32 * ((inputs + 1) / 2) * 128));
    ms_pack(pool, w.data(), inputs, panels.data(), columns, inputs);
    const auto multiply = [&](void* y, int32_t type) {
        ms_multiply(pool, panels.data(), 1, columns, inputs, x.data(), sizeof(X) == 2, inputs, 0, y, type, columns, 0, rows);
    };
    std::vector<float> y(static_cast<size_t>(rows * columns));
    multiply(y.data(), 0);
    std::vector<uint16_t> half(y.size());
    multiply(half.data(), 1);
    calls += 2;
    return y;
}

// Everything that one pool computes, end to end; equal for all pools.
std::vector<float> everything(Pool* pool, int64_t row_step) {
    std::vector<float> out;
    const auto keep = [&](const std::vector<float>& y) { out.insert(out.end(), y.begin(), y.end()); };
    for (const int64_t width : {32, 96}) {
        state = 3;
        const std::vector<uint8_t> panels = pack(pool, width, 128 - width);
        for (int64_t rows = 0; rows <= 70; rows += row_step) {
            for (const int32_t precision : {0, 1, 2}) {
                keep(experts(pool, panels, width, 128 - width, rows, precision));
                keep(experts_apart(pool, panels, width, 128 - width, rows, precision));
            }
        }
        keep(experts(pool, panels, width, 128 - width, 600, 0));
    }
    for (int64_t rows = 0; rows <= 70; rows += row_step) {
        keep(linear<float>(pool, rows, 37, 77));
        keep(linear<uint16_t>(pool, rows, 37, 77));
    }
    for (const int64_t inputs : {0, 1, 33, 1100}) {
        keep(linear<float>(pool, 9, 3, inputs));
        keep(linear<uint16_t>(pool, 9, 3, inputs));
    }
    keep(attention_everything(pool));
    // Large enough to be shared among threads.
    keep(linear<uint16_t>(pool, 3, 300, 1024));
    return out;
}

}  // namespace

int main(int count, char** arguments) {
    const int64_t row_step = count > 1 && strcmp(arguments[1], "sparse") == 0 ? 9 : 1;
    std::vector<float> first;
    for (const char* isa : {"avx512", "avx512_vnni", "avx_vnni", "avx2", "portable"}) {
        for (const int32_t threads : {1, 3}) {
            Pool* pool = ms_pool_new(threads, isa);
            if (pool == nullptr) continue;
            const std::vector<float> found = everything(pool, row_step);
            if (first.empty()) first = found;
            if (found.size() != first.size() || memcmp(found.data(), first.data(), found.size() * 4) != 0) {
                fprintf(stderr, "%s with %d threads differs\n", isa, threads);
                return 1;
            }
            std::vector<uint8_t> megabytes(3 << 20, 1);
            ms_advise_huge(megabytes.data(), 3 << 20);
            ms_read_all(pool, megabytes.data(), 3 << 20);
            ms_peak(pool, 0, 10, 2);
            ms_peak(pool, 1, 10, 2);
            ms_pool_free(pool);
        }
    }
    printf("%d calls\n", calls);
}
