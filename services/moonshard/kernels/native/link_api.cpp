// The C interface of the links, loaded by kernels/links.py. Python's own state is untouched: descriptors and memory in.
#include <new>

#include "link_answer.h"
#include "link_courier.h"
#include "link_shard.h"

using namespace moonshard;

extern "C" {

Courier* ms_courier_new(const LinkShape* shape, Link* const* links, int32_t source) {
    try {
        return new Courier(*shape, links, source);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void ms_courier_free(Courier* courier) { delete courier; }

int32_t ms_courier_dispatch(Courier* courier, uint64_t step, int32_t layer, const void* x_TD, const void* ids_TK,
                            int32_t wide_ids, const float* weights_TK, int64_t num_rows, int64_t timeout_ns) {
    try {
        const Rows rows{static_cast<const uint8_t*>(x_TD), ids_TK, weights_TK, num_rows, wide_ids != 0};
        return courier->dispatch(step, layer, rows, timeout_ns);
    } catch (const std::bad_alloc&) {  // only while the lists are made: nothing was sent
        return kRefused;
    }
}

int32_t ms_courier_combine(Courier* courier, float* y_TD, int64_t timeout_ns) {
    return courier->combine(y_TD, timeout_ns);
}

int32_t ms_link_receive(const LinkShape* shape, Link* const* links, int32_t num_links, int32_t listener,
                        int64_t timeout_ns) {
    return receive(*shape, links, num_links, listener, timeout_ns);
}

int32_t ms_link_answer(const LinkShape* shape, AnswerPlan* plan, Link* const* links, int32_t num_links, int32_t listener,
                       int64_t timeout_ns) {
    return answer(*shape, *plan, links, num_links, listener, timeout_ns);
}

int64_t ms_link_reply(const LinkShape* shape, Link* link, uint64_t step, int32_t layer, int64_t num_rows, const void* y,
                      int32_t convert, uint16_t* scratch) {
    return reply(*shape, *link, step, layer, num_rows, y, convert != 0, scratch);
}

}  // extern "C"
