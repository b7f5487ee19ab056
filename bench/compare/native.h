// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The limits: what a case costs as plain system calls in this process, and the
// least that asking another thread for it can cost, by eventfd and by a ring
// in shared memory that both sides spin on.
//
// A native_* function makes the call to repeat: the fewest system calls that
// do the case's work, on the same files. It owns what it needs.
#pragma once

#include <cstdint>
#include <functional>

#include "bench/compare/clock.h"
#include "bench/compare/histogram.h"
#include "bench/compare/share.h"

namespace virtiofsd::bench {

using Native = std::function<void()>;

Native native_lookup(Share& share);
Native native_lookup_cold(Share& share);
Native native_lookup_missing(Share& share);
Native native_getattr(Share& share);
Native native_open(Share& share);
Native native_open_cold(Share& share);
Native native_create(Share& share);
Native native_mkdir(Share& share);
Native native_rename(Share& share);
Native native_readdir(Share& share);
Native native_readdirplus(Share& share);
Native native_readdirplus_many(Share& share);
Native native_walk(Share& share);
Native native_read_4k(Share& share);
Native native_read_direct(Share& share);
Native native_write_4k(Share& share);
Native native_read_128k(Share& share);
Native native_write_128k(Share& share);
Native native_read_1m(Share& share);
Native native_write_1m(Share& share);
Native native_fsync(Share& share);
Native native_mix(Share& share);

// Round trips: of `count` for so many operations the first do the work, one each, and the last
// ends with the last of them.
struct Turns {
  constexpr Turns(unsigned trips,
                  unsigned for_operations = 1)  // NOLINT(google-explicit-constructor)
      : count(trips), operations(for_operations) {}
  bool does_work(unsigned turn) const { return turn < operations; }
  bool ends_one(unsigned turn) const { return turn + 1 < operations || turn + 1 == count; }
  double of_one() const { return static_cast<double>(count) / operations; }

  unsigned count;
  unsigned operations;
};

struct Timed {
  Histogram latencies;  // nanoseconds
  double seconds = 0;
  double cpu_seconds = 0;  // of the thread that makes the calls
};

// The calls alone, one after the other.
Timed time_native(const Native& native, std::uint64_t nanoseconds);

// A second thread does the call when told by eventfd and answers by eventfd.
Timed time_eventfd(const Native& native, Turns turns, Place place, std::uint64_t nanoseconds);

// The same with two words in memory, both threads spinning on processors of their own.
Timed time_spinning(const Native& native, Turns turns, std::uint64_t nanoseconds);

// `depth` operations in flight. The second thread spins for requests and does them in turn; the
// first hands out all it can, then sleeps until it is told by eventfd: after each request, or once
// nothing waits, whichever is faster. A request costs no more than two counters in memory.
Timed time_in_flight(const Native& native, Turns turns, unsigned depth, std::uint64_t nanoseconds);

}  // namespace virtiofsd::bench
