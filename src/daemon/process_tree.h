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
// And a whole tree can be succeeded by another one (handover.h).
//
// SIGTERM, SIGINT and SIGHUP end the tree within a second from any state; so
// does the death of the launcher or of the supervisor. The launcher's exit status is the worker's.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "daemon/listener.h"
#include "sandbox/sandbox.h"

namespace virtiofsd {

// What the worker function starts with.
class WorkerStart {
 public:
  sandbox::Entered sandbox;
  // Whose work it goes on with: nobody's; that of a worker of this tree, which ended; or that of
  // another tree, which still can go on itself, until ready(). Or its predecessor's client has
  // left, and it waits for another one.
  enum class After : std::uint8_t { kNobody, kWorker, kTree, kClient };
  After after = After::kNobody;
  bool blames = false;  // kWorker: that one died of what it did
  // Readable: come to rest and end_paused, for another process goes on from there.
  FdRef pause;

  // All that could fail has been done: makes the launcher open the socket and
  // returns when it has (then Listener::accept); or take over from the other tree. Once in a tree:
  // with kNobody and kTree. A Failure means that the launcher could not, or is gone: return
  // non-zero.
  Result<void, Failure> ready();
  // Ends the process as it is: what a destructor would close is the next one's.
  [[noreturn]] static void end_paused();

 private:
  friend class Supervisor;
  WorkerStart(FdRef launcher, FdRef null) : launcher_(launcher), null_(null) {}
  FdRef launcher_;
  FdRef null_;  // valid with daemonize
};

// What outlives a worker, as far as the process tree has to do with it. In the supervisor.
class Estate {
 public:
  virtual ~Estate() = default;

  // Whether there is anybody to go on serving.
  virtual bool has_client() const = 0;
  // When a worker has ended: what keeps another one from going on, for the log; null: nothing.
  virtual const char* against_succession() const = 0;
  // The descriptors that the next one goes on with (-1 is none), each once. Every other one is
  // closed, but for those from before the first worker.
  virtual std::vector<int> inherits() const = 0;

  // The memory that it is in.
  virtual FdRef memory() const = 0;
  // Another tree's: whether this program can go on with it. It is kept for adopt.
  virtual Result<void, Failure> consider(UniqueFd memory) = 0;
  // The client has left, and there may be another one: all is as in the beginning.
  virtual void begin_again() = 0;

  // The other's memory is ours now, with these descriptors, by the numbers that they have in there.
  virtual Result<void, Failure> adopt(std::unordered_map<int, UniqueFd> descriptors) = 0;
};

struct ProcessTreeSettings {
  // The caller gets its prompt back once the socket is there; from then on
  // nothing is written to its terminal, so a log needs syslog or a file.
  bool daemonize = false;
  // Without one nothing is succeeded.
  Estate* estate = nullptr;
  // A worker that returns 0 is followed by one for the next client. Needs an estate.
  bool keep_listening = false;
  // The launcher of a tree whose work this one goes on with; needs an estate.
  std::optional<pid_t> take_over = {};
};

// Runs the tree and returns, in the launcher (or, with daemonize, first in the
// caller's process), the exit status for main: 0 when the worker returned 0, the tree was told to
// stop or another one took over, 1 for a start or a worker that failed. `worker`
// runs in the worker process; its return value ends that process. It finds
// SIGTERM, SIGINT and SIGHUP at their defaults and SIGPIPE ignored. A worker
// that returns non-zero has said why in the log.
int run_process_tree(const ProcessTreeSettings& settings, sandbox::Plan plan, Listener& listener,
                     const std::function<int(WorkerStart&)>& worker);

}  // namespace virtiofsd
