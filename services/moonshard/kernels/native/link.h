// A link as C++ and Python share it: Python opens, closes and greets; the native calls move whole messages and leave
// everything unusual, with the bytes read so far in place, to Python. See kernels/links.py for the same structures there.
#pragma once
#include <poll.h>
#include <stdint.h>

namespace moonshard {

// The wire's header (transport/wire.py), little-endian. Templates of it come from Python; only the fields that change
// from message to message are filled in here.
struct LinkHeader {
    char magic[4];
    uint16_t version;
    uint8_t kind, dtype;
    uint64_t step;
    uint32_t epoch;
    int32_t layer, source;
    uint32_t num_rows, hidden_size, top_k;
    uint64_t payload_bytes;
    uint8_t unused[12];
    uint32_t checksum;
};
static_assert(sizeof(LinkHeader) == 64, "the header as Python packs it");

constexpr int64_t kLinkHeaderBytes = sizeof(LinkHeader);

enum LinkState : int32_t {
    kLinkQuiet = 0,
    kLinkMessage = 1,  // a whole, checked message fills the buffer
    kLinkTrouble = 2,  // Python must see to it; `revents` says what poll said
};

constexpr int32_t kNotTaken = -1;  // no room in the socket until the limit

struct Link {
    int32_t fd;
    int32_t native;   // 0: only Python reads from it
    int32_t reads;    // 0: its messages stay in the socket
    int32_t state, revents;
    int32_t error;    // errno of a failed send, or kNotTaken
    uint8_t* buffer;  // of the message that is arriving
    int64_t capacity, filled;
    const uint8_t* unsent;  // at a shard: what is left of the first buffer that waits for room in the socket
    int64_t num_unsent;     // its bytes; at a courier: what is left of the message
    int64_t source;    // attention worker (at a shard)
    int64_t max_rows;  // of one message
    uint64_t step;     // of the message in the buffer
    int32_t layer, num_rows;
    int64_t num_sums;  // rows of the answer to it
    int64_t sent_bytes, received_bytes, waited_ns;  // totals (of a dispatcher)
};

// What does not change from message to message.
struct LinkShape {
    LinkHeader dispatch, reply;  // templates
    int64_t row_bytes, num_experts, num_shards, max_rows;
    const int32_t* layers;
    int64_t num_layers;
    int64_t sums_by_expert;  // 1: the answer has a row for each (row, expert), in that order; 0: one for each row
    // At a courier, [layers, experts]: how many shards hold the expert, and their numbers, `copies_max` apart.
    const int32_t *copies, *shards;
    int64_t copies_max;
    // At a shard, [layers, experts]: where the expert lies in its memory, -1: elsewhere. Other threads change it.
    const int32_t* slots;

    // The layer's place in `layers`; -1 for none of them.
    int64_t place(int32_t layer) const {
        for (int64_t i = 0; i < num_layers; i++)
            if (layers[i] == layer) return i;
        return -1;
    }
};

int64_t now_ns();
// Milliseconds until the deadline, rounded up, for poll.
int poll_ms(int64_t deadline_ns);
LinkHeader fill(const LinkHeader& pattern, int32_t source, uint64_t step, int32_t layer, int64_t num_rows,
                int64_t payload_bytes);
// One recv of at most `wanted` bytes; false when the link needs Python.
bool read_some(Link& link, int64_t wanted);
inline void trouble(Link& link, int revents) {
    link.state = kLinkTrouble;
    link.revents = revents;
}

}  // namespace moonshard
