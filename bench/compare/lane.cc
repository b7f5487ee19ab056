// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/lane.h"

#include <poll.h>
#include <unistd.h>

#include "base/check.h"
#include "bench/compare/clock.h"

namespace virtiofsd::bench {
namespace {

constexpr std::uint32_t kInHeader = sizeof(fuse_in_header);
constexpr std::uint32_t kOutHeader = sizeof(fuse_out_header);
constexpr std::uint64_t kPatience = 10'000'000'000;

}  // namespace

Lane::Lane(guest::FrontEnd& front_end, unsigned queue, unsigned slots, std::uint32_t data_bytes,
           std::uint32_t uid)
    : ring_(front_end.ring(queue)),
      call_(front_end.call_fd(queue)),
      uid_(uid),
      slots_(slots),
      next_unique_((std::uint64_t{queue} << 56) + 2) {
  guest::GuestRam& ram = front_end.ram();
  for (Slot& slot : slots_) {
    const guest::Block in = ram.allocate(kInHeader + kArgumentBytes);
    const guest::Block out = ram.allocate(kOutHeader + kReplyBytes);
    slot.header = in.host;
    slot.arguments = in.host + kInHeader;
    slot.out = out.host;
    slot.reply = out.host + kOutHeader;
    slot.in = {{.guest = in.guest, .size = kInHeader}, {.guest = in.guest + kInHeader, .size = 0}};
    slot.out_with_reply = {{.guest = out.guest, .size = kOutHeader},
                           {.guest = out.guest + kOutHeader, .size = 0}};
    slot.out_with_pages = {{.guest = out.guest, .size = kOutHeader}};
  }
  if (data_bytes == 0) return;
  for (Slot& slot : slots_) {
    const guest::Block data = ram.allocate(data_bytes, kPage);
    slot.data = data.host;
    for (std::uint32_t at = 0; at < data_bytes; at += kPage) {
      const guest::Buffer page{.guest = data.guest + at, .size = kPage};
      slot.in.push_back(page);
      slot.out_with_reply.push_back(page);
      slot.out_with_pages.push_back(page);
    }
  }
}

void Lane::add(std::uint32_t index, const Request& request) {
  Slot& slot = slots_[index];
  const fuse_in_header header{
      .len = kInHeader + request.arguments + request.data_in,
      .opcode = request.opcode,
      .unique = next_unique_,
      .nodeid = request.node,
      .uid = uid_,
      .gid = uid_,
      .pid = 1,
      .total_extlen = 0,
      .padding = 0,
  };
  std::memcpy(slot.header, &header, sizeof(header));
  slot.unique = next_unique_;
  next_unique_ += 2;  // the lowest bit is INTERRUPT's in Linux
  slot.room = kOutHeader + request.reply + request.data_out;

  std::size_t readable = 1;
  if (request.arguments > 0) {
    slot.in[1].size = request.arguments;
    readable = 2 + (request.data_in + kPage - 1) / kPage;
  }
  const std::size_t pages = request.data_out / kPage;
  bool added = false;
  if (request.reply > 0) {
    slot.out_with_reply[1].size = request.reply;
    added = ring_.add({slot.in.data(), readable}, {slot.out_with_reply.data(), 2 + pages}, index);
  } else {
    added = ring_.add({slot.in.data(), readable}, {slot.out_with_pages.data(), 1 + pages}, index);
  }
  CHECK(added || ring_.broken());
}

void Lane::complain(const Slot& slot, const char* what, const guest::Used& used) {
  fuse_out_header header;
  std::memcpy(&header, slot.out, sizeof(header));
  fuse_in_header asked;
  std::memcpy(&asked, slot.header, sizeof(asked));
  violation_ = "opcode " + std::to_string(asked.opcode) + ": " + what + " (used " +
               std::to_string(used.length) + ", len " + std::to_string(header.len) + ", error " +
               std::to_string(header.error) + ")";
}

bool Lane::poll(Done& done) {
  const std::optional<guest::Used> used = ring_.poll();
  if (!used) {
    if (ring_.broken()) [[unlikely]]
      violation_ = ring_.breakage();
    return false;
  }
  Slot& slot = slots_[used->cookie];
  fuse_out_header header;
  std::memcpy(&header, slot.out, sizeof(header));
  if (header.unique != slot.unique) [[unlikely]]
    complain(slot, "the reply answers another request", *used);
  if (header.len != used->length || header.len > slot.room || header.len < kOutHeader) [[unlikely]]
    complain(slot, "the reply's length is wrong", *used);
  if (header.error > 0 || (header.error != 0 && header.len != kOutHeader)) [[unlikely]]
    complain(slot, "the reply's error is wrong", *used);
  done = {.slot = used->cookie, .error = -header.error, .bytes = header.len - kOutHeader};
  return true;
}

// ---- Forgets ----

Forgets::Forgets(guest::FrontEnd& front_end)
    : ring_(front_end.ring(0)), call_(front_end.call_fd(0)) {
  const unsigned slots = ring_.options().size;
  for (unsigned i = 0; i < slots; ++i) {
    blocks_.push_back(front_end.ram().allocate(kInHeader + sizeof(fuse_forget_in)));
    free_.push_back(i);
  }
}

void Forgets::reap() {
  while (const auto used = ring_.poll()) free_.push_back(used->cookie);
}

bool Forgets::wait_for_room(unsigned in_flight) {
  for (const std::uint64_t limit = now_ns() + kPatience;;) {
    reap();
    if (ring_.in_flight() <= in_flight) return true;
    if (ring_.broken() || now_ns() > limit) return false;
    if (!ring_.arm()) continue;
    pollfd waited{.fd = call_.number(), .events = POLLIN, .revents = 0};
    ::poll(&waited, 1, 100);
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(call_.number(), &count, sizeof(count));
  }
}

bool Forgets::forget(std::uint64_t node, std::uint64_t count) {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    ring_.publish();
    if (!wait_for_room(ring_.options().size / 2)) return false;
  }
  const std::uint32_t slot = free_.back();
  free_.pop_back();
  const fuse_in_header header{
      .len = kInHeader + sizeof(fuse_forget_in),
      .opcode = FUSE_FORGET,
      .unique = next_unique_,
      .nodeid = node,
      .uid = 0,
      .gid = 0,
      .pid = 0,
      .total_extlen = 0,
      .padding = 0,
  };
  next_unique_ += 2;
  const fuse_forget_in body{.nlookup = count};
  std::memcpy(blocks_[slot].host, &header, sizeof(header));
  std::memcpy(blocks_[slot].host + kInHeader, &body, sizeof(body));
  const guest::Buffer buffer{.guest = blocks_[slot].guest, .size = header.len};
  ring_.add({&buffer, 1}, {}, slot);
  ++sent_;
  return true;
}

void Forgets::flush() {
  const std::lock_guard lock(mutex_);
  ring_.publish();
  reap();
  // Linux leaves this queue's interrupts on: the daemon pays for them, nobody here sleeps.
  ring_.arm();
}

bool Forgets::drain() {
  const std::lock_guard lock(mutex_);
  ring_.publish();
  return wait_for_room(0);
}

}  // namespace virtiofsd::bench
