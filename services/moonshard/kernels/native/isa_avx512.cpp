#include "lanes_avx512.h"

#include "isa_table.h"

namespace moonshard {
extern const Isa isa_avx512;
const Isa isa_avx512 = make_isa("avx512");
}  // namespace moonshard
