// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Looks at every busy crew, each half millisecond while requests get stuck and
// each five milliseconds else, and deposes leaders that are stuck; makes the
// threads that crews need. Sleeps, without any timer, while the device is idle.
// Its lock is taken before a crew's, never after.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/sync.h"

namespace virtiofsd {

class Crew;

class Watchdog {
 public:
  Watchdog();
  ~Watchdog();
  void watch(Crew* crew);
  // The crew's threads are parked: none of them calls grow after this.
  void unwatch(Crew* crew);
  // Calls crew->add_thread() soon and until it succeeds, from a thread that may make threads.
  void grow(Crew* crew);

  // A leader has work again, and its crew's lead_state() says so already (each
  // looks for the other's store after its own). One load while the watchdog is awake.
  void note_activity() {
    if (asleep_.load(std::memory_order_seq_cst)) wake();
  }

 private:
  void run();
  void wake();
  bool all_wait_locked() const REQUIRES(mutex_);

  struct Watched {
    Crew* crew;
    std::uint64_t last = 0;
  };

  std::atomic<bool> asleep_{false};
  Mutex mutex_;
  Condition changed_;
  std::vector<Watched> crews_ GUARDED_BY(mutex_);
  std::vector<Crew*> growing_ GUARDED_BY(mutex_);
  bool leaving_ GUARDED_BY(mutex_) = false;
  bool woken_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace virtiofsd
