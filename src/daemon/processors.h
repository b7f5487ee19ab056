// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// How many of the processors this process may run on its crews use, so that
// threads that only save time (by spinning, by helping) never crowd out those
// that do the work. One for all crews of a device; any thread.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

namespace virtiofsd {

class Processors {
 public:
  Processors() { look_again(); }

  // Affinity may change at any time (a VMM pins its back-ends late); asked for
  // now and then, never on the way of a request.
  void look_again() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    // Fails where there are more processors than fit.
    const bool known = ::sched_getaffinity(0, sizeof allowed, &allowed) == 0;
    count_.store(known ? static_cast<std::uint32_t>(CPU_COUNT(&allowed)) : CPU_SETSIZE,
                 std::memory_order_relaxed);
  }
  std::uint32_t count() const { return count_.load(std::memory_order_relaxed); }

  // At most half of them spin: the drivers they wait for need one each as well. With one, whoever
  // works alone may.
  bool may_spin() {
    const std::uint32_t most = count() == 1 && working() == 1 ? 1 : count() / 2;
    if (spinning_.fetch_add(1, std::memory_order_relaxed) < most) return true;
    spun();
    return false;
  }
  void spun() { spinning_.fetch_sub(1, std::memory_order_relaxed); }
  std::uint32_t spinning() const { return spinning_.load(std::memory_order_relaxed); }

  // Threads that take requests: leaders that are awake, and helpers.
  void begin_work() { working_.fetch_add(1, std::memory_order_relaxed); }
  void end_work() { working_.fetch_sub(1, std::memory_order_relaxed); }
  std::uint32_t working() const { return working_.load(std::memory_order_relaxed); }
  bool one_is_free() const { return working() < count(); }

 private:
  std::atomic<std::uint32_t> count_{1};
  std::atomic<std::uint32_t> spinning_{0};
  std::atomic<std::uint32_t> working_{0};
};

}  // namespace virtiofsd
