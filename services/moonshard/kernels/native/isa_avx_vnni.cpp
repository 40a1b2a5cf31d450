#include "lanes_avx2.h"

#include "isa_table.h"

namespace moonshard {
extern const Isa isa_avx_vnni;
const Isa isa_avx_vnni = make_isa("avx_vnni");
}  // namespace moonshard
