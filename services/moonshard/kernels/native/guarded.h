// How the C interface answers: 0, or -1 when memory ran out.
#pragma once
#include <mutex>
#include <new>

#include "pool.h"

namespace moonshard {

template <class Body>
int32_t guarded(Pool* pool, const Body& body) {
    try {
        std::lock_guard<std::mutex> lock(pool->calls);
        body();
        return 0;
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

}  // namespace moonshard
