// A shard that answers by itself: receive, compute, reply, as long as messages come one at a time and nothing is unusual.
#pragma once
#include "experts.h"
#include "link.h"

namespace moonshard {

// Filled in by Python, which owns all memory; see kernels/links.py.
struct AnswerPlan {
    Pool* pool;
    const uint8_t* const* panels;  // by the layer's place in LinkShape.layers
    int64_t hidden;
    int32_t precision, x_type;
    // What is counted, as kernels/tally.py has it.
    int64_t* counts;    // [layers, counted experts]: rows served
    int64_t* active;    // [layers]
    int64_t* batches;   // [layers]
    int64_t* sizes;     // [num_sizes]
    int64_t num_sizes;
    int64_t* scratch;   // [counted experts], zero between batches
    int64_t first_counted, num_counted;  // logical experts
    int64_t rows_max;   // of an answer that is given here
    float* y;           // [rows_max, width]
    uint16_t* rounded;  // the same, for a BF16 wire
    // What was answered since Python last looked; it empties the lists.
    int64_t num_logged, log_size;
    int32_t* log_rows;
    int64_t* log_ns;
    // A reply that the socket took in part: bytes sent, and the link's place. Python sends the rest. -1: none.
    int64_t cut_sent, cut_link;
};

// As `receive`, but messages that can be answered here are; returns with those that cannot.
int32_t answer(const LinkShape& shape, AnswerPlan& plan, Link* const* links, int32_t num_links, int32_t listener,
               int64_t timeout_ns);

}  // namespace moonshard
