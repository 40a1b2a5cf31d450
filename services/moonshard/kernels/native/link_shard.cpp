#include "link_shard.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <vector>

#include "link_rows.h"

namespace moonshard {

namespace {

// How many (row, expert) pairs there are to compute; -1 for ids that cannot be meant for this shard. With sums by expert
// any expert may have been here when the message left: what is not here any more is answered with NaN.
int64_t count_known(const LinkShape& shape, int64_t place, const uint8_t* payload, int64_t count) {
    const int32_t* slots = shape.slots + place * shape.num_experts;
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t id;
        memcpy(&id, payload + i * 4, 4);
        if (id == -1) continue;
        if (id < 0 || id >= shape.num_experts || (!shape.sums_by_expert && slots[id] < 0)) return -1;
        found++;
    }
    return found;
}

// The header that a sender of these rows would have made, compared whole: every field and the checksum at once.
bool as_expected(const LinkShape& shape, const Link& link, const LinkHeader& found) {
    const int64_t r = found.num_rows;
    if (r < 1 || r > shape.max_rows) return false;
    const int64_t payload = r * (shape.dispatch.top_k * 8 + shape.row_bytes);
    const LinkHeader expected =
        fill(shape.dispatch, static_cast<int32_t>(link.source), found.step, found.layer, r, payload);
    return memcmp(&expected, &found, sizeof found) == 0 && shape.place(found.layer) >= 0;
}

void check_message(const LinkShape& shape, Link& link) {
    if (link.filled < kLinkHeaderBytes) return;
    LinkHeader header;
    memcpy(&header, link.buffer, sizeof header);
    if (!as_expected(shape, link, header)) return trouble(link, POLLIN);
    const int64_t size = kLinkHeaderBytes + static_cast<int64_t>(header.payload_bytes);
    // Longer than its buffer, or more than one message: Python's to sort out.
    if (size > link.capacity || link.filled > size) return trouble(link, POLLIN);
    if (link.filled < size) return;
    const int64_t num_ids = static_cast<int64_t>(header.num_rows) * header.top_k;
    const int64_t pairs = count_known(shape, shape.place(header.layer), link.buffer + kLinkHeaderBytes, num_ids);
    if (pairs < 0) return trouble(link, POLLIN);
    link.num_sums = shape.sums_by_expert ? pairs : header.num_rows;
    link.step = header.step;
    link.layer = header.layer;
    link.num_rows = static_cast<int32_t>(header.num_rows);
    link.state = kLinkMessage;
}

void send_unsent(Link& link) {
    const ssize_t sent = send(link.fd, link.unsent, static_cast<size_t>(link.num_unsent), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
        link.unsent += sent;
        link.num_unsent -= sent;
        if (link.num_unsent > 0) return;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
        return;
    }
    trouble(link, POLLOUT);  // done with this buffer, or the link is broken: Python's turn
}

void serve(const LinkShape& shape, Link& link, int revents) {
    if (!link.native || (revents & ~(POLLIN | POLLOUT))) return trouble(link, revents);
    if (revents & POLLOUT) send_unsent(link);
    if (!(revents & POLLIN) || link.state != kLinkQuiet) return;
    if (link.filled == link.capacity) return trouble(link, POLLIN);
    if (read_some(link, link.capacity - link.filled)) check_message(shape, link);
}

}  // namespace

int32_t receive(const LinkShape& shape, Link* const* links, int32_t num_links, int32_t listener, int64_t timeout_ns) {
    const int64_t deadline_ns = now_ns() + timeout_ns;
    thread_local std::vector<pollfd> polled;
    for (;;) {
        polled.clear();
        for (int32_t i = 0; i < num_links; i++) {
            const Link& link = *links[i];
            const int events = (link.reads ? POLLIN : 0) | (link.num_unsent > 0 ? POLLOUT : 0);
            polled.push_back({link.fd, static_cast<short>(events), 0});
        }
        polled.push_back({listener, POLLIN, 0});
        const int ready = poll(polled.data(), polled.size(), poll_ms(deadline_ns));
        if (ready <= 0) return 0;
        int32_t found = polled.back().revents != 0;
        for (int32_t i = 0; i < num_links; i++) {
            if (polled[i].revents == 0) continue;
            serve(shape, *links[i], polled[i].revents);
            found += links[i]->state != kLinkQuiet;
        }
        if (found > 0) return found;
    }
}

int64_t reply(const LinkShape& shape, Link& link, uint64_t step, int32_t layer, int64_t num_rows, const void* y,
              bool convert, uint16_t* scratch) {
    const int64_t bytes = num_rows * shape.row_bytes;
    if (convert) {
        round_to_bf16(static_cast<const float*>(y), scratch, num_rows * shape.reply.hidden_size);
        y = scratch;
    }
    const LinkHeader header = fill(shape.reply, shape.reply.source, step, layer, num_rows, bytes);
    iovec pieces[2] = {{const_cast<LinkHeader*>(&header), sizeof header},
                       {const_cast<void*>(y), static_cast<size_t>(bytes)}};
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = 2;
    const ssize_t sent = sendmsg(link.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -errno;
    return sent;
}

}  // namespace moonshard
