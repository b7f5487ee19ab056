// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A queue as a benchmark drives it: request slots that are made once, close
// together, and written straight into the ring, laid out in descriptors as
// Linux does (header | arguments | pages, header | reply | pages). Nothing is
// allocated after construction.
//
// Every reply is checked: its length, its `unique`, its error. One thread at a
// time, but Forgets, which any thread may use.
#pragma once

#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "testing/front_end.h"

namespace virtiofsd::bench {

struct Request {
  std::uint32_t opcode = 0;
  std::uint64_t node = 0;
  std::uint32_t arguments = 0;  // bytes of Lane::arguments
  std::uint32_t data_in = 0;    // bytes of Lane::data; a multiple of kPage
  std::uint32_t reply = 0;      // room in Lane::reply
  std::uint32_t data_out = 0;   // room in Lane::data; a multiple of kPage
};

struct Done {
  std::uint32_t slot = 0;
  int error = 0;            // positive errno
  std::uint32_t bytes = 0;  // of the reply, header not counted
};

class Lane {
 public:
  static constexpr std::uint32_t kArgumentBytes = 320;
  static constexpr std::uint32_t kReplyBytes = 320;
  static constexpr std::uint32_t kPage = 4096;  // of the guest: one descriptor each

  // `slots` at most the ring's size. `data_bytes` of pages for each slot.
  Lane(guest::FrontEnd& front_end, unsigned queue, unsigned slots, std::uint32_t data_bytes,
       std::uint32_t uid);

  guest::DriverRing& ring() { return ring_; }
  FdRef call_fd() const { return call_; }
  unsigned slots() const { return static_cast<unsigned>(slots_.size()); }

  std::byte* arguments(std::uint32_t slot) { return slots_[slot].arguments; }
  const std::byte* reply(std::uint32_t slot) const { return slots_[slot].reply; }
  std::byte* data(std::uint32_t slot) { return slots_[slot].data; }

  void add(std::uint32_t slot, const Request& request);
  // False when nothing came back.
  bool poll(Done& done);
  // What the daemon did wrong, or empty.
  const std::string& violation() const { return violation_; }

 private:
  struct Slot {
    std::byte* header = nullptr;
    std::byte* arguments = nullptr;
    std::byte* out = nullptr;
    std::byte* reply = nullptr;
    std::byte* data = nullptr;
    std::uint64_t unique = 0;
    // header | arguments | pages, header | reply | pages, header | pages.
    std::vector<guest::Buffer> in, out_with_reply, out_with_pages;
    std::uint32_t room = 0;
  };
  void complain(const Slot& slot, const char* what, const guest::Used& used);

  guest::DriverRing& ring_;
  FdRef call_;
  const std::uint32_t uid_;
  std::vector<Slot> slots_;
  std::uint64_t next_unique_;
  std::string violation_;
};

// FORGETs on the high-priority queue, one request each, as Linux sends them.
// When the daemon is behind by a whole ring, the sender waits.
class Forgets {
 public:
  explicit Forgets(guest::FrontEnd& front_end);

  // Thread-safe. Published by flush() at the latest. False: the daemon took
  // nothing for ten seconds.
  bool forget(std::uint64_t node, std::uint64_t count);
  void flush();
  // Waits until the daemon took all of them.
  bool drain();
  std::uint64_t sent() const { return sent_; }

 private:
  bool wait_for_room(unsigned in_flight);
  void reap();

  std::mutex mutex_;
  guest::DriverRing& ring_;
  const FdRef call_;
  std::vector<guest::Block> blocks_;
  std::vector<std::uint32_t> free_;
  std::uint64_t next_unique_ = 2;
  std::uint64_t sent_ = 0;
};

}  // namespace virtiofsd::bench
