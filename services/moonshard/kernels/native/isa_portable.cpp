#include "lanes_portable.h"

#include "isa_table.h"

namespace moonshard {
extern const Isa isa_portable;
const Isa isa_portable = make_isa("portable");
}  // namespace moonshard
