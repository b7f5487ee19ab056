// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The process tree: launcher (what the caller started) → supervisor (in the
// sandbox; process 1 of its pid namespace) → worker (serves). The supervisor
// shares its descriptor table with the worker, not its memory, so whatever the
// worker had open outlives it. Each of the three is single-threaded until the
// worker function starts threads.
//
// A worker that is ended by a signal gets a successor, which goes on with those
// descriptors and what the dead one left in shared memory; but not again and again in a short time.
//
// SIGTERM, SIGINT and SIGHUP end the tree within a second from any state; so
// does the death of the launcher or of the supervisor. The launcher's exit status is the worker's.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <vector>

#include "base/result.h"
#include "daemon/listener.h"
#include "sandbox/sandbox.h"

namespace virtiofsd {

// What the worker function starts with.
class WorkerStart {
 public:
  sandbox::Entered sandbox;
  // The signal that ended the worker before this one, its successor; 0 in the first.
  int died_of = 0;

  // All that could fail has been done: makes the launcher open the socket and
  // returns when it has (then Listener::accept). Call once. A Failure means
  // that the launcher could not, or is gone: return non-zero.
  Result<void, Failure> ready();

 private:
  friend class ProcessTree;
  WorkerStart(FdRef launcher, FdRef null) : launcher_(launcher), null_(null) {}
  FdRef launcher_;
  FdRef null_;  // valid with daemonize
};

struct ProcessTreeSettings {
  // The caller gets its prompt back once the socket is there; from then on
  // nothing is written to its terminal, so a log needs syslog or a file.
  bool daemonize = false;

  // How a worker is succeeded; empty: never. Asked in the supervisor when a worker has died: what
  // keeps another one from going on, for the log; null: nothing.
  std::function<const char*()> against_succession;
  // Asked in the successor, before it opens anything: the descriptors that its predecessor had and
  // that it goes on with (-1 is none), each once. Every other one is closed, but for those from
  // before the first worker.
  std::function<std::vector<int>()> inherits;
};

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

// Runs the tree and returns, in the launcher (or, with daemonize, first in the
// caller's process), the exit status for main: 0 when the worker returned 0 or
// the tree was told to stop, 1 for a start or a worker that failed. `worker`
// runs in the worker process; its return value ends that process. It finds
// SIGTERM, SIGINT and SIGHUP at their defaults and SIGPIPE ignored. A worker
// that returns non-zero has said why in the log.
int run_process_tree(const ProcessTreeSettings& settings, sandbox::Plan plan, Listener& listener,
                     const std::function<int(WorkerStart&)>& worker);

}  // namespace virtiofsd
