// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The process tree: launcher (what the caller started) → supervisor (in the
// sandbox; process 1 of its pid namespace) → worker (serves). The supervisor
// shares its descriptor table with the worker, not its memory, so whatever the
// worker had open outlives it. Each of the three is single-threaded until the
// worker function starts threads.
//
// SIGTERM, SIGINT and SIGHUP end the tree within a second from any state; so
// does the death of the launcher or of the supervisor. The launcher's exit status is the worker's.
#pragma once

#include <functional>

#include "base/result.h"
#include "daemon/listener.h"
#include "sandbox/sandbox.h"

namespace virtiofsd {

// What the worker function starts with.
class WorkerStart {
 public:
  sandbox::Entered sandbox;

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
