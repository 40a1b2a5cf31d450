// The expert side: whole, checked messages in; sums out.
#pragma once
#include "link.h"

namespace moonshard {

// Waits until a link has a whole message, or needs Python, or somebody connects. Number of such links (0: time is up or
// a signal came); the listener counts as one.
int32_t receive(const LinkShape& shape, Link* const* links, int32_t num_links, int32_t listener, int64_t timeout_ns);

// Sends the sums of a message's rows, converted to the wire's type. Bytes sent (the rest is Python's), or -errno.
// scratch: room for the converted rows, when y is FP32 and the wire is BF16.
int64_t reply(const LinkShape& shape, Link& link, uint64_t step, int32_t layer, int64_t num_rows, const void* y,
              bool convert, uint16_t* scratch);

}  // namespace moonshard
