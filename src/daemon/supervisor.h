// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The process that looks after workers: it starts one, and another one where one died and the next
// can go on; it hands the device over to another process tree, or takes it over from one. In the
// sandbox; single-threaded; shares its descriptor table with the worker, not its memory.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include "daemon/handover.h"
#include "daemon/process_tree.h"
#include "sandbox/sandbox.h"
#include "sys/events.h"
#include "sys/fd.h"

namespace virtiofsd {

// Whether a worker that died gets a successor. What the guest can bring about, and learn from,
// must not be repeated without end. A worker that was killed (by the kernel, out of memory, which
// a guest may bring about as well) tells it nothing, so that may happen more often.
class Deaths {
 public:
  using Clock = std::chrono::steady_clock;
  bool may_be_succeeded(int signal, Clock::time_point now);

 private:
  struct Limit {
    std::chrono::seconds within;
    std::size_t most;
  };
  static constexpr Limit kKilled{std::chrono::seconds(10), 50};
  static constexpr Limit kKilledLately{std::chrono::hours(1), 200};
  static constexpr Limit kFailed{std::chrono::seconds(60), 5};
  static constexpr std::size_t kFailedInAll = 20;

  static bool is_within(const Limit& limit, std::deque<Clock::time_point>& deaths,
                        Clock::time_point now);

  std::deque<Clock::time_point> killed_;
  std::deque<Clock::time_point> killed_lately_;
  std::deque<Clock::time_point> failed_;
  std::size_t failed_in_all_ = 0;
};

class Supervisor {
 public:
  // What it was cloned with; borrowed until it ends.
  struct Inherited {
    FdRef signals;  // as watch_signals has it
    FdRef channel;  // to the launcher
    FdRef null;     // none: the terminal is kept
    FdRef door;     // none: nobody can take the device over
  };
  Supervisor(const ProcessTreeSettings& settings, sandbox::Plan& plan, Inherited inherited,
             const std::function<int(WorkerStart&)>& worker)
      : settings_(settings), plan_(plan), inherited_(inherited), worker_function_(worker) {}

  // `predecessor`: the tree to take over from; null: none. Ends the process.
  [[noreturn]] void run(handover::Predecessor* predecessor);

 private:
  using Clock = std::chrono::steady_clock;

  Result<void, Failure> take_over_from(handover::Predecessor& predecessor);
  void start_worker(WorkerStart::After after, bool blames = false);
  void worker_ended(int status);
  void stop();
  void meet_heir();
  void hear_heir();
  void refuse_heir(const char* why);
  void hand_over();

  const ProcessTreeSettings& settings_;
  sandbox::Plan& plan_;
  Inherited inherited_;
  const std::function<int(WorkerStart&)>& worker_function_;
  std::optional<sys::EventFd> pause_;
  std::vector<int> from_before_;  // the descriptors that are no worker's
  pid_t worker_ = -1;
  WorkerStart::After after_ = WorkerStart::After::kNobody;  // as that one was started
  bool stopping_ = false;
  Deaths deaths_;
  // Who looks at what there is, or waits for the worker to come to rest; and how long.
  std::optional<handover::Heir> heir_;
  bool heir_waits_ = false;
  bool may_rest_ = false;  // the worker has been told to at some time
  Clock::time_point heir_deadline_;
};

}  // namespace virtiofsd
