// Which instruction set this processor runs best.
#include <string.h>

#include "isa.h"

namespace moonshard {

extern const Isa isa_portable;

#if defined(__x86_64__)
// Weak: an older compiler leaves out what it does not know.
extern const Isa isa_avx512 __attribute__((weak)), isa_avx512_vnni __attribute__((weak));
extern const Isa isa_avx_vnni __attribute__((weak)), isa_avx2 __attribute__((weak));

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512_vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

bool has_avx512() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

// Compilers name this feature only since lately: leaf 7, subleaf 1, EAX bit 4.
bool has_avx_vnni() {
    if (!has_avx2()) return false;
    uint32_t a = 7, b, c = 1, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (a >> 4 & 1) != 0;
}

}  // namespace
#endif

namespace {

struct Candidate {
    const Isa* isa;
    bool runs;
};

}  // namespace

const Isa* find_isa(const char* name) {
    const Candidate candidates[] = {
#if defined(__x86_64__)
        {&isa_avx512, has_avx512()},  {&isa_avx512_vnni, has_avx512_vnni()},
        {&isa_avx_vnni, has_avx_vnni()}, {&isa_avx2, has_avx2()},
#endif
        {&isa_portable, true},
    };
    for (const Candidate& candidate : candidates) {
        if (candidate.isa == nullptr || !candidate.runs) continue;
        if (name == nullptr || strcmp(name, candidate.isa->name) == 0) return candidate.isa;
    }
    return nullptr;
}

}  // namespace moonshard
