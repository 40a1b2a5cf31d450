#include "lanes_avx2.h"

#include "isa_table.h"

namespace moonshard {
extern const Isa isa_avx2;
const Isa isa_avx2 = make_isa("avx2");
}  // namespace moonshard
