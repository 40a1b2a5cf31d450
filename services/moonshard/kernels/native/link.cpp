// What both sides of a link need: time, headers with their checksum, one read.
#include "link.h"

#include <errno.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <array>

namespace moonshard {

namespace {

// CRC-32 as zlib computes it.
constexpr std::array<uint32_t, 256> crc_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0u);
        table[i] = value;
    }
    return table;
}

constexpr std::array<uint32_t, 256> kCrc = crc_table();

uint32_t checksum(const LinkHeader& header) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&header);
    uint32_t value = ~0u;
    for (int64_t i = 0; i < kLinkHeaderBytes - 4; i++) value = kCrc[(value ^ bytes[i]) & 255] ^ (value >> 8);
    return ~value;
}

}  // namespace

int64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * int64_t{1000000000} + now.tv_nsec;
}

int poll_ms(int64_t deadline_ns) {
    const int64_t left = (deadline_ns - now_ns() + 999999) / 1000000;
    return static_cast<int>(std::clamp<int64_t>(left, 0, INT32_MAX));
}

LinkHeader fill(const LinkHeader& pattern, int32_t source, uint64_t step, int32_t layer, int64_t num_rows,
                int64_t payload_bytes) {
    LinkHeader header = pattern;
    header.source = source;
    header.step = step;
    header.layer = layer;
    header.num_rows = static_cast<uint32_t>(num_rows);
    header.payload_bytes = static_cast<uint64_t>(payload_bytes);
    header.checksum = checksum(header);
    return header;
}

bool read_some(Link& link, int64_t wanted) {
    const ssize_t got = recv(link.fd, link.buffer + link.filled, static_cast<size_t>(wanted), MSG_DONTWAIT);
    if (got > 0) {
        link.filled += got;
        return true;
    }
    // An end or an error is told again to whoever reads next; Python finds the words for it.
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return true;
    trouble(link, POLLIN);
    return false;
}

}  // namespace moonshard
