// Dispatch, receive, reply and combine over socket pairs, odd shapes, buffers of exactly the size needed, shards in threads
// of their own; then bytes that are no message. Prints the number of calls; exits 1 when a sum is wrong.
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "../../../services/moonshard/kernels/native/link.h"

using namespace moonshard;

struct Courier;
extern "C" {
Courier* ms_courier_new(const LinkShape*, Link* const*, int32_t);
void ms_courier_free(Courier*);
int32_t ms_courier_dispatch(Courier*, uint64_t, int32_t, const void*, const void*, int32_t, const float*, int64_t,
                            int64_t);
int32_t ms_courier_combine(Courier*, float*, int64_t);
int32_t ms_link_receive(const LinkShape*, Link* const*, int32_t, int32_t, int64_t);
int64_t ms_link_reply(const LinkShape*, Link*, uint64_t, int32_t, int64_t, const void*, int32_t, uint16_t*);
}

namespace {

constexpr int64_t kShards = 3, kPerShard = 4, kSource = 2, kSecond = 1000000000;
const int32_t kLayers[] = {1, 5};
uint32_t state = 1;
uint32_t next() { return state = state * 1664525u + 1013904223u, state >> 8; }
std::atomic<int> calls{0};

void fail(const char* what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

// In blocks; with sums apart also a second copy of every expert, at the next shard.
struct Table {
    int32_t copies[2 * kShards * kPerShard], shards[2 * kShards * kPerShard * 2], slots[kShards][2 * kShards * kPerShard];
    explicit Table(bool apart) {
        for (int32_t at = 0; at < 2 * kShards * kPerShard; at++) {
            const int32_t expert = at % (kShards * kPerShard), home = expert / kPerShard, second = (home + 1) % kShards;
            copies[at] = apart ? 2 : 1;
            shards[2 * at] = home;
            shards[2 * at + 1] = second;
            for (int32_t shard = 0; shard < kShards; shard++)
                slots[shard][at] = shard == home || (apart && shard == second) ? expert : -1;
        }
    }
};
const Table kBlocks(false), kCopied(true);

LinkShape make_shape(int64_t d, int64_t k, bool bf16, int32_t shard, bool apart) {
    const Table& table = apart ? kCopied : kBlocks;
    LinkShape shape{};
    memcpy(shape.dispatch.magic, "MNSD", 4);
    shape.dispatch.version = 1;
    shape.dispatch.dtype = bf16 ? 2 : 1;
    shape.dispatch.hidden_size = static_cast<uint32_t>(d);
    shape.dispatch.top_k = static_cast<uint32_t>(k);
    shape.reply = shape.dispatch;
    shape.dispatch.kind = 4;
    shape.reply.kind = 5;
    shape.reply.source = shard;
    shape.row_bytes = d * (bf16 ? 2 : 4);
    shape.num_experts = kShards * kPerShard;
    shape.sums_by_expert = apart;
    shape.copies = table.copies;
    shape.shards = table.shards;
    shape.copies_max = 2;
    shape.slots = table.slots[shard % kShards];
    shape.num_shards = kShards;
    shape.max_rows = 100;
    shape.layers = kLayers;
    shape.num_layers = 2;
    return shape;
}

// A link with memory for one message of that size.
struct Owned {
    std::vector<uint8_t> memory;
    Link link{};
    Owned(int fd, int64_t bytes) : memory(static_cast<size_t>(bytes)) {
        link.fd = fd;
        link.native = link.reads = 1;
        link.buffer = memory.data();
        link.capacity = bytes;
        link.source = kSource;
        link.max_rows = 100;
    }
};

// Answers every row, or every pair, with the row itself, converted from FP32 where the wire is BF16, until the other
// side hangs up.
void serve(int fd, int32_t shard, int64_t d, int64_t k, bool bf16, int64_t rows, bool apart) {
    const LinkShape shape = make_shape(d, k, bf16, shard, apart);
    Owned owned(fd, kLinkHeaderBytes + rows * (shape.row_bytes + 8 * k));
    Link* links[] = {&owned.link};
    for (;;) {
        if (ms_link_receive(&shape, links, 1, -1, 10 * kSecond) == 0) fail("a shard heard nothing");
        if (owned.link.state == kLinkTrouble) break;
        const int64_t r = owned.link.num_sums;
        const auto* ids = reinterpret_cast<const int32_t*>(owned.memory.data() + kLinkHeaderBytes);
        const uint8_t* x = owned.memory.data() + kLinkHeaderBytes + owned.link.num_rows * k * 8;
        std::vector<int64_t> rows_of;
        for (int64_t i = 0; i < owned.link.num_rows * k; i++)
            if (apart ? ids[i] >= 0 : i % k == 0) rows_of.push_back(i / k);
        if (static_cast<int64_t>(rows_of.size()) != r) fail("sums were counted wrongly");
        std::vector<float> y(static_cast<size_t>(r * d));
        std::vector<uint16_t> scratch(static_cast<size_t>(r * d));
        for (int64_t i = 0; i < r * d; i++) {
            uint32_t bits = 0;
            const int64_t from = rows_of[static_cast<size_t>(i / d)] * d + i % d;
            memcpy(reinterpret_cast<uint8_t*>(&bits) + (bf16 ? 2 : 0), x + from * (bf16 ? 2 : 4), bf16 ? 2 : 4);
            memcpy(&y[static_cast<size_t>(i)], &bits, 4);
        }
        owned.link.filled = 0;
        owned.link.state = kLinkQuiet;
        int64_t sent =
            ms_link_reply(&shape, &owned.link, owned.link.step, owned.link.layer, r, y.data(), bf16, scratch.data());
        const uint8_t* payload = bf16 ? reinterpret_cast<uint8_t*>(scratch.data()) : reinterpret_cast<uint8_t*>(y.data());
        if (sent < kLinkHeaderBytes) fail("a reply did not start");
        owned.link.unsent = payload + (sent - kLinkHeaderBytes);
        owned.link.num_unsent = r * shape.row_bytes - (sent - kLinkHeaderBytes);
        while (owned.link.num_unsent > 0) {
            pollfd room{fd, POLLOUT, 0};
            poll(&room, 1, 1000);
            sent = send(fd, owned.link.unsent, static_cast<size_t>(owned.link.num_unsent), MSG_NOSIGNAL);
            if (sent < 0) fail("a reply broke off");
            owned.link.unsent += sent;
            owned.link.num_unsent -= sent;
        }
        calls += shard == 0;
    }
    close(fd);
}

void round_trips(int64_t rows, int64_t d, int64_t k, bool bf16, bool apart) {
    LinkShape shape = make_shape(d, k, bf16, kSource, apart);
    shape.dispatch.source = kSource;
    std::vector<std::unique_ptr<Owned>> owned;
    std::vector<std::thread> shards;
    Link* links[kShards];
    for (int32_t shard = 0; shard < kShards; shard++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) fail("no sockets");
        owned.push_back(std::make_unique<Owned>(pair[0], kLinkHeaderBytes + rows * (apart ? k : 1) * shape.row_bytes));
        links[shard] = &owned.back()->link;
        shards.emplace_back(serve, pair[1], shard, d, k, bf16, rows, apart);
    }
    Courier* courier = ms_courier_new(&shape, links, kSource);
    for (uint64_t step = 0; step < 4; step++) {
        std::vector<uint16_t> halves;
        std::vector<float> floats, weights, y(static_cast<size_t>(rows * d), 7.0f), wanted(y.size(), 0.0f);
        std::vector<int32_t> ids;
        for (int64_t i = 0; i < rows * d; i++) {
            floats.push_back(static_cast<float>(next() % 64));
            uint32_t bits;
            memcpy(&bits, &floats.back(), 4);
            halves.push_back(static_cast<uint16_t>(bits >> 16));
        }
        for (int64_t t = 0; t < rows; t++) {
            bool asked[kShards] = {};
            int64_t num_pairs = 0;
            for (int64_t i = 0; i < k; i++) {
                ids.push_back(static_cast<int32_t>(next() % (kShards * kPerShard + 1)) - 1);
                weights.push_back(1.0f);
                if (ids.back() >= 0) asked[ids.back() / kPerShard] = true;
                num_pairs += ids.back() >= 0;
            }
            const int64_t sums = apart ? num_pairs : asked[0] + asked[1] + asked[2];
            for (int64_t i = 0; i < d; i++)
                for (int64_t sum = 0; sum < sums; sum++) wanted[t * d + i] += floats[t * d + i];
        }
        const void* x = bf16 ? static_cast<void*>(halves.data()) : floats.data();
        if (ms_courier_dispatch(courier, step, 5, x, ids.data(), 0, weights.data(), rows, 10 * kSecond)) fail("dispatch");
        if (ms_courier_combine(courier, y.data(), 10 * kSecond)) fail("combine");
        if (memcmp(y.data(), wanted.data(), y.size() * 4) != 0) fail("a sum is wrong");
        calls++;
    }
    ms_courier_free(courier);
    for (Link* link : links) close(link->fd);
    for (std::thread& shard : shards) shard.join();
}

void noise(int64_t bytes) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) fail("no sockets");
    const LinkShape shape = make_shape(24, 4, false, 0, false);
    Owned owned(pair[1], 200);
    Link* links[] = {&owned.link};
    std::vector<uint8_t> data(static_cast<size_t>(bytes));
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(next());
    if (send(pair[0], data.data(), data.size(), 0) != bytes) fail("noise did not leave");
    const int32_t found = ms_link_receive(&shape, links, 1, -1, kSecond / 100);
    if ((found != 0) != (bytes >= kLinkHeaderBytes) || owned.link.state == kLinkMessage) fail("noise passed");
    close(pair[0]);
    close(pair[1]);
    calls++;
}

}  // namespace

int main() {
    for (int64_t rows : {1, 2, 7, 70})
        for (int64_t d : {1, 5, 600, 3000})
            for (int64_t k : {1, 4})
                for (bool bf16 : {false, true})
                    for (bool apart : {false, true}) round_trips(rows, d, k, bf16, apart);
    for (int64_t bytes : {1, 63, 64, 65, 200, 1000}) noise(bytes);
    printf("%d calls\n", calls.load());
}
