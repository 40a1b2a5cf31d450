#include "lanes_avx512.h"

#include "isa_table.h"

namespace moonshard {
extern const Isa isa_avx512_vnni;
const Isa isa_avx512_vnni = make_isa("avx512_vnni");
}  // namespace moonshard
