#include "link_answer.h"

#include <algorithm>
#include <new>

#include "link_shard.h"

namespace moonshard {

namespace {

// One batch; its twin is Tally.add.
void count(const AnswerPlan& plan, int64_t layer, const int32_t* ids, int64_t num_ids) {
    const int64_t experts = plan.num_counted, first = plan.first_counted;
    int64_t active = 0, *counts = plan.counts + layer * experts;
    for (int64_t i = 0; i < num_ids; i++)
        if (ids[i] >= 0) plan.scratch[ids[i] - first]++;
    for (int64_t e = 0; e < experts; e++) {
        const int64_t rows = plan.scratch[e];
        if (rows == 0) continue;
        int64_t size = 0;
        while (size < plan.num_sizes - 1 && (int64_t{1} << size) < rows) size++;
        plan.sizes[size]++;
        plan.scratch[e] = 0;
        counts[e] += rows;
        active++;
    }
    plan.active[layer] += active;
    plan.batches[layer]++;
}

// False when memory ran out: Python's path will say so.
bool compute(const LinkShape& shape, const AnswerPlan& plan, const Link& link, int64_t layer) {
    const int64_t r = link.num_rows, k = shape.dispatch.top_k, width = shape.dispatch.hidden_size;
    const uint8_t* ids = link.buffer + kLinkHeaderBytes;
    const auto* weights = reinterpret_cast<const float*>(ids + r * k * 4);
    const Batch batch{ids + r * k * 8, static_cast<Type>(plan.x_type), width, plan.y, width,
                      static_cast<Precision>(plan.precision)};
    try {
        std::lock_guard<std::mutex> lock(plan.pool->calls);
        forward(*plan.pool, {plan.panels[layer], width, plan.hidden}, batch,
                {ids, false, weights, r, k, 0, shape.num_experts, shape.slots + layer * shape.num_experts,
                 shape.sums_by_expert != 0});
    } catch (const std::bad_alloc&) {
        return false;
    }
    count(plan, layer, reinterpret_cast<const int32_t*>(ids), r * k);
    return true;
}

// True when the message has been answered and nothing needs Python.
bool answer_one(const LinkShape& shape, AnswerPlan& plan, Link& link, int64_t place) {
    const int64_t r = link.num_rows, sums = link.num_sums, started_ns = now_ns();
    if (!compute(shape, plan, link, shape.place(link.layer))) return false;
    plan.log_rows[plan.num_logged] = link.num_rows;
    plan.log_ns[plan.num_logged++] = now_ns() - started_ns;
    const bool convert = shape.row_bytes == 2 * static_cast<int64_t>(shape.dispatch.hidden_size);
    const int64_t size = kLinkHeaderBytes + sums * shape.row_bytes;
    const int64_t sent = reply(shape, link, link.step, link.layer, sums, plan.y, convert, plan.rounded);
    link.received_bytes += kLinkHeaderBytes + r * (8 * shape.dispatch.top_k + shape.row_bytes);
    link.filled = 0;
    link.state = kLinkQuiet;
    if (sent < 0) {
        trouble(link, POLLERR);  // broken: whoever reads from it learns why
        return false;
    }
    link.sent_bytes += size;
    if (sent == size) return true;
    plan.cut_sent = sent;
    plan.cut_link = place;
    return false;
}

}  // namespace

int32_t answer(const LinkShape& shape, AnswerPlan& plan, Link* const* links, int32_t num_links, int32_t listener,
               int64_t timeout_ns) {
    const int64_t deadline_ns = now_ns() + timeout_ns;
    plan.cut_sent = -1;
    for (int64_t left_ns = timeout_ns;; left_ns = deadline_ns - now_ns()) {
        if (left_ns < 0 || plan.num_logged == plan.log_size) return 0;
        const int64_t since_ns = now_ns();
        const int32_t found = receive(shape, links, num_links, listener, left_ns);
        if (found != 1) return found;  // several at once may be merged
        Link* const* link =
            std::find_if(links, links + num_links, [](const Link* one) { return one->state != kLinkQuiet; });
        if (link == links + num_links || (*link)->state != kLinkMessage || (*link)->num_sums > plan.rows_max) return 1;
        (*link)->waited_ns += now_ns() - since_ns;
        if (!answer_one(shape, plan, **link, link - links)) return 1;
    }
}

}  // namespace moonshard
