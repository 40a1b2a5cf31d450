// The attention side: rows out to the shards of their experts, sums back in shard order.
// Shapes: T rows of a step, R rows of one shard, D hidden size, K experts per token.
#pragma once
#include <stddef.h>

#include <vector>

#include "link.h"

namespace moonshard {

enum CourierStatus : int32_t {
    kDone = 0,
    kRefused = 1,      // nothing was sent: expert ids or row counts out of bounds
    kTrouble = 2,      // at least one link needs Python
    kTimedOut = 3,
    kInterrupted = 4,  // by a signal: call again
};

struct Rows {
    const uint8_t* x_TD;
    const void* ids_TK;
    const float* weights_TK;
    int64_t num_rows;
    bool wide_ids;  // int64, else int32

    int64_t id(int64_t i) const {
        return wide_ids ? static_cast<const int64_t*>(ids_TK)[i] : static_cast<const int32_t*>(ids_TK)[i];
    }
};

// What one shard gets, and how much of it has left.
struct Route {
    int64_t shard;
    std::vector<int32_t> rows_R, ids_RK;
    std::vector<float> weights_RK;
    int64_t num_sums;  // rows of the reply
    LinkHeader header, expected;  // expected: of the reply
    int64_t sent, message_bytes, reply_bytes;  // with their headers

    bool unsent() const { return sent < message_bytes; }
};

class Courier {
public:
    Courier(const LinkShape& shape, Link* const* links, int32_t source);
    CourierStatus dispatch(uint64_t step, int32_t layer, const Rows& rows, int64_t timeout_ns);
    CourierStatus combine(float* y_TD, int64_t timeout_ns);

private:
    bool split(const Rows& rows, uint64_t step, int64_t place);
    int64_t shard_of(int64_t id, int64_t turn, int64_t place) const;
    bool address(uint64_t step, int32_t layer);
    void send_some(Route& route);
    void read_reply(const Route& route);
    bool due(const Route& route) const;
    CourierStatus wait(int64_t deadline_ns, bool sending);
    bool any_trouble() const;
    void sum(float* y_TD);
    void sum_by_expert(float* y_TD);

    const LinkShape shape_;
    Link* const* const links_;
    const int32_t source_;
    Rows rows_{};
    std::vector<Route> routes_;  // by shard; only `active_` of them carry rows
    std::vector<Route*> active_;
    std::vector<pollfd> polled_;
    std::vector<int32_t> shards_TK_;  // that compute each (row, slot); -1: nobody
    std::vector<size_t> next_;  // row of each route's reply that the sum reaches next
    std::vector<const uint8_t*> parts_;
    int64_t waiting_since_ns_ = 0;  // in `combine`; 0: the replies are early, nobody waits
};

}  // namespace moonshard
