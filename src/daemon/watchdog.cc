// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/watchdog.h"

#include <algorithm>
#include <chrono>

#include "daemon/crew.h"
#include "sys/process.h"

namespace virtiofsd {
namespace {

using Clock = std::chrono::steady_clock;

// The watchdog looks rarely, for each look takes a processor from somebody,
// until it finds a request stuck: then often, for as many ticks.
constexpr auto kCalmTick = std::chrono::microseconds(5000);
constexpr auto kAlertTick = std::chrono::microseconds(500);
constexpr int kAlertTicks = 1000;
// Ticks without any request before it goes to sleep.
constexpr int kWatchLinger = 10;

}  // namespace

Watchdog::Watchdog()
    : thread_([this] {
        sys::name_this_thread("watchdog");
        run();
      }) {}

Watchdog::~Watchdog() {
  {
    Lock lock(mutex_);
    leaving_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void Watchdog::watch(Crew* crew) {
  Lock lock(mutex_);
  crews_.push_back({crew, 0});
  woken_ = true;
  changed_.notify_all();
}

void Watchdog::unwatch(Crew* crew) {
  Lock lock(mutex_);
  std::erase_if(crews_, [crew](const Watched& watched) { return watched.crew == crew; });
  std::erase(growing_, crew);
}

void Watchdog::grow(Crew* crew) {
  Lock lock(mutex_);
  growing_.push_back(crew);
  woken_ = true;
  changed_.notify_all();
}

void Watchdog::wake() {
  Lock lock(mutex_);
  woken_ = true;
  changed_.notify_all();
}

bool Watchdog::all_wait_locked() const {
  return growing_.empty() && std::ranges::all_of(crews_, [](const Watched& watched) {
           return Crew::is_waiting(watched.crew->lead_state());
         });
}

void Watchdog::run() {
  int quiet = 0;
  int alert = 0;
  bool threads_missing = false;
  Lock lock(mutex_);
  while (!leaving_) {
    if (quiet >= kWatchLinger) {
      asleep_.store(true, std::memory_order_seq_cst);
      // Looked at again after saying so: only a leader that waits for a kick will wake us. One
      // that is between two phases (a new thread may take its time to begin) is still watched.
      while (!woken_ && !leaving_ && all_wait_locked()) changed_.wait(mutex_);
      asleep_.store(false, std::memory_order_relaxed);
      quiet = 0;
    }
    if (growing_.empty() || threads_missing)
      (void)changed_.wait_until(mutex_, Clock::now() + (alert > 0 ? kAlertTick : kCalmTick));
    if (alert > 0) --alert;
    woken_ = false;
    bool active = false;
    // Who gets none stays in the list: the lead is vacant until there is one.
    std::erase_if(growing_, [](Crew* crew) { return crew->add_thread(); });
    for (Watched& watched : crews_) {
      const std::uint64_t now = watched.crew->lead_state();
      if (now == watched.last) {
        if (Crew::is_serving(now)) {
          active = true;
          alert = kAlertTicks;
          if (!watched.crew->depose(now)) growing_.push_back(watched.crew);
        } else if (!Crew::is_waiting(now)) {
          // A vacant lead is taken in no time. glibc's conditions are known to lose a wake-up (its
          // bug 25847), and this one nobody else would repeat.
          watched.crew->remind();
        }
        continue;
      }
      watched.last = now;
      active = true;
    }
    threads_missing = !growing_.empty();
    quiet = active || threads_missing ? 0 : quiet + 1;
  }
}

}  // namespace virtiofsd
