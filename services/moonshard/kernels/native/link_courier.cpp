#include "link_courier.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>

#include "link_rows.h"

namespace moonshard {

namespace {

constexpr int kPiecesMax = 256;               // of one sendmsg
constexpr int64_t kSmallReplyBytes = 64 << 10;  // fits the socket, so its sender is not kept waiting

// Appends `bytes` at `data` without its first `skip`; what is skipped counts down.
int add_piece(iovec* pieces, int count, const void* data, int64_t bytes, int64_t& skip) {
    const int64_t skipped = std::min(skip, bytes);
    skip -= skipped;
    if (skipped == bytes) return count;
    pieces[count] = {const_cast<uint8_t*>(static_cast<const uint8_t*>(data)) + skipped,
                     static_cast<size_t>(bytes - skipped)};
    return count + 1;
}

}  // namespace

Courier::Courier(const LinkShape& shape, Link* const* links, int32_t source)
    : shape_(shape), links_(links), source_(source), routes_(static_cast<size_t>(shape.num_shards)) {
    for (int64_t shard = 0; shard < shape.num_shards; shard++) routes_[shard].shard = shard;
    active_.reserve(routes_.size());
    polled_.reserve(routes_.size());
    next_.reserve(routes_.size());
    parts_.reserve(routes_.size());
}

CourierStatus Courier::dispatch(uint64_t step, int32_t layer, const Rows& rows, int64_t timeout_ns) {
    rows_ = rows;
    waiting_since_ns_ = 0;
    if (!split(rows, step, shape_.place(layer)) || !address(step, layer)) return kRefused;
    for (Route* route : active_) send_some(*route);
    const int64_t deadline_ns = now_ns() + timeout_ns;
    const auto unsent = [&](Route* route) { return route->unsent() && links_[route->shard]->state == kLinkQuiet; };
    while (std::any_of(active_.begin(), active_.end(), unsent)) {
        // A signal's handler may run later: the wait has its own limit, and a half-sent message must be finished.
        const CourierStatus status = wait(deadline_ns, true);
        if (status == kTimedOut) {
            for (Route* route : active_)
                if (unsent(route)) {
                    links_[route->shard]->error = kNotTaken;
                    trouble(*links_[route->shard], 0);
                }
            return kTimedOut;
        }
    }
    return any_trouble() ? kTrouble : kDone;
}

CourierStatus Courier::combine(float* y_TD, int64_t timeout_ns) {
    waiting_since_ns_ = now_ns();
    const int64_t deadline_ns = waiting_since_ns_ + timeout_ns;
    while (std::any_of(active_.begin(), active_.end(), [&](Route* route) { return due(*route); })) {
        const CourierStatus status = wait(deadline_ns, false);
        if (status != kDone) return status;
        if (any_trouble()) return kTrouble;
    }
    if (any_trouble()) return kTrouble;
    shape_.sums_by_expert ? sum_by_expert(y_TD) : sum(y_TD);
    for (Route* route : active_) {
        Link& link = *links_[route->shard];
        link.received_bytes += route->reply_bytes;
        link.filled = 0;
        link.state = kLinkQuiet;
    }
    return kDone;
}

// Copies take turns by step, row and expert: evenly, and alike in the Python twin (routing_table.py). -1: nobody.
int64_t Courier::shard_of(int64_t id, int64_t turn, int64_t place) const {
    const int64_t entry = place * shape_.num_experts + id, copies = shape_.copies[entry];
    if (copies == 0) return -1;
    return shape_.shards[entry * shape_.copies_max + (copies == 1 ? 0 : turn % copies)];
}

bool Courier::split(const Rows& rows, uint64_t step, int64_t place) {
    const int64_t k = shape_.dispatch.top_k;
    if (place < 0) return false;
    shards_TK_.assign(static_cast<size_t>(rows.num_rows * k), -1);
    for (Route& route : routes_) {
        route.rows_R.clear();
        route.ids_RK.clear();
        route.weights_RK.clear();
        route.num_sums = 0;
    }
    for (int64_t t = 0; t < rows.num_rows; t++)
        for (int64_t i = 0; i < k; i++) {
            const int64_t id = rows.id(t * k + i);
            if (id < 0) continue;
            if (id >= shape_.num_experts) return false;
            const int64_t shard = shard_of(id, static_cast<int64_t>(step) + t + id, place);
            if (shard < 0) return false;
            shards_TK_[t * k + i] = static_cast<int32_t>(shard);
            Route& route = routes_[shard];
            if (route.rows_R.empty() || route.rows_R.back() != t) {
                route.rows_R.push_back(static_cast<int32_t>(t));
                route.ids_RK.resize(route.ids_RK.size() + k, -1);
                route.weights_RK.insert(route.weights_RK.end(), rows.weights_TK + t * k, rows.weights_TK + (t + 1) * k);
            }
            route.ids_RK[route.ids_RK.size() - k + i] = static_cast<int32_t>(id);
            route.num_sums++;
        }
    if (!shape_.sums_by_expert)
        for (Route& route : routes_) route.num_sums = static_cast<int64_t>(route.rows_R.size());
    return true;
}

// Headers, and those of the replies, which are then known to the last byte. False when a shard would get too many rows.
bool Courier::address(uint64_t step, int32_t layer) {
    active_.clear();
    for (Route& route : routes_) {
        const int64_t r = static_cast<int64_t>(route.rows_R.size()), shard = route.shard;
        if (r == 0) continue;
        const Link& link = *links_[shard];
        const int64_t payload = r * (shape_.dispatch.top_k * 8 + shape_.row_bytes);
        const int64_t sums = route.num_sums, sums_bytes = sums * shape_.row_bytes;
        if (r > link.max_rows || link.capacity < kLinkHeaderBytes + sums_bytes) return false;
        const bool alike = !active_.empty() && active_.back()->header.num_rows == r;
        route.header = alike ? active_.back()->header : fill(shape_.dispatch, source_, step, layer, r, payload);
        route.expected = fill(shape_.reply, static_cast<int32_t>(shard), step, layer, sums, sums_bytes);
        route.sent = 0;
        route.message_bytes = kLinkHeaderBytes + payload;
        route.reply_bytes = kLinkHeaderBytes + sums_bytes;
        links_[shard]->num_unsent = route.message_bytes;
        active_.push_back(&route);
    }
    return true;
}

void Courier::send_some(Route& route) {
    Link& link = *links_[route.shard];
    const int64_t r = static_cast<int64_t>(route.rows_R.size()), lists = r * shape_.dispatch.top_k * 4;
    const int64_t bytes = shape_.row_bytes, rows_at = kLinkHeaderBytes + 2 * lists;
    while (route.unsent()) {
        iovec pieces[kPiecesMax];
        int64_t skip = route.sent;
        int count = add_piece(pieces, 0, &route.header, kLinkHeaderBytes, skip);
        count = add_piece(pieces, count, route.ids_RK.data(), lists, skip);
        count = add_piece(pieces, count, route.weights_RK.data(), lists, skip);
        int64_t row = route.sent > rows_at ? (route.sent - rows_at) / bytes : 0;
        skip -= std::min(skip, row * bytes);
        while (row < r && count < kPiecesMax) {
            int64_t stop = row + 1;  // neighbours leave as one piece
            while (stop < r && route.rows_R[stop] == route.rows_R[stop - 1] + 1) stop++;
            count = add_piece(pieces, count, rows_.x_TD + route.rows_R[row] * bytes, (stop - row) * bytes, skip);
            row = stop;
        }
        msghdr message{};
        message.msg_iov = pieces;
        message.msg_iovlen = static_cast<size_t>(count);
        const ssize_t sent = sendmsg(link.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0) {
            route.sent += sent;
            link.num_unsent = route.message_bytes - route.sent;
            link.sent_bytes += sent;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } else if (errno != EINTR) {
            link.error = errno;
            return trouble(link, 0);
        }
    }
}

bool Courier::due(const Route& route) const { return links_[route.shard]->state == kLinkQuiet; }

bool Courier::any_trouble() const {
    return std::any_of(active_.begin(), active_.end(),
                       [&](Route* route) { return links_[route->shard]->state == kLinkTrouble; });
}

// Reads what is there of the reply, and nothing beyond it.
void Courier::read_reply(const Route& route) {
    Link& link = *links_[route.shard];
    if (!read_some(link, route.reply_bytes - link.filled) || link.filled < kLinkHeaderBytes) return;
    if (memcmp(link.buffer, &route.expected, kLinkHeaderBytes) != 0) return trouble(link, POLLIN);
    if (link.filled == route.reply_bytes) {
        link.state = kLinkMessage;
        if (waiting_since_ns_) link.waited_ns += now_ns() - waiting_since_ns_;
    }
}

// One poll, and service of all that it found.
// Small replies: sleep until the shard asked last has answered, the others' answers are most likely there by then; they
// are watched for their end only. Each wake-up saved is two context switches. Large ones must be read as they come.
CourierStatus Courier::wait(int64_t deadline_ns, bool sending) {
    const Route* last = nullptr;
    bool large = sending;
    for (const Route* route : active_)
        if (due(*route)) {
            last = route;
            large = large || route->reply_bytes > kSmallReplyBytes;
        }
    polled_.clear();
    for (const Route* route : active_) {
        short events = route == last || large ? POLLIN : POLLRDHUP;
        if (route->unsent()) events |= POLLOUT;
        polled_.push_back({due(*route) ? links_[route->shard]->fd : -1, events, 0});
    }
    const int num = poll(polled_.data(), polled_.size(), poll_ms(deadline_ns));
    if (num < 0) return kInterrupted;
    if (num == 0) return kTimedOut;
    for (size_t i = 0; i < active_.size(); i++) {
        Route& route = *active_[i];
        Link& link = *links_[route.shard];
        const short found = polled_[i].revents;
        if (polled_[i].fd < 0) continue;
        if (found & (POLLHUP | POLLERR | POLLNVAL | POLLRDHUP)) {
            trouble(link, found);
            continue;
        }
        if (found & POLLOUT) send_some(route);
        if (link.state == kLinkQuiet && ((found & POLLIN) || (!large && !found))) read_reply(route);
    }
    return kDone;
}

void Courier::sum(float* y_TD) {
    const int64_t d = shape_.dispatch.hidden_size;
    const auto add = shape_.row_bytes == 4 * d ? sum_fp32 : sum_bf16;
    next_.assign(active_.size(), 0);
    for (int64_t t = 0; t < rows_.num_rows; t++) {
        parts_.clear();
        for (size_t i = 0; i < active_.size(); i++) {
            const Route& route = *active_[i];
            if (next_[i] == route.rows_R.size() || route.rows_R[next_[i]] != t) continue;
            const int64_t row = static_cast<int64_t>(next_[i]++);
            parts_.push_back(links_[route.shard]->buffer + kLinkHeaderBytes + row * shape_.row_bytes);
        }
        add(parts_.data(), static_cast<int64_t>(parts_.size()), y_TD + t * d, d);
    }
}

// In the gate's order of a row's experts, wherever they were computed.
void Courier::sum_by_expert(float* y_TD) {
    const int64_t d = shape_.dispatch.hidden_size, k = shape_.dispatch.top_k;
    const auto add = shape_.row_bytes == 4 * d ? sum_fp32 : sum_bf16;
    next_.assign(routes_.size(), 0);
    for (int64_t t = 0; t < rows_.num_rows; t++) {
        parts_.clear();
        for (int64_t i = 0; i < k; i++) {
            const int64_t shard = shards_TK_[t * k + i];
            if (shard < 0) continue;
            const int64_t row = static_cast<int64_t>(next_[shard]++);
            parts_.push_back(links_[shard]->buffer + kLinkHeaderBytes + row * shape_.row_bytes);
        }
        add(parts_.data(), static_cast<int64_t>(parts_.size()), y_TD + t * d, d);
    }
}

}  // namespace moonshard
