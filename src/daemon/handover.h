// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// How a process tree hands a running device over to another one, of a newer program: the VMM keeps
// its connection, the guest its files. What is said, over a sequenced-packet socket at an abstract
// address with the old launcher's pid in it:
//
//   the new tree                              the old tree (supervisor)
//   "hello"                               →
//                                         ←   "offer", with the arena, the shared directory and
//                                             its mount namespace; or "no", and why not
//   looks whether that suits it: "give"   →   stops its worker, between two messages
//                                         ←   "some": descriptors, with their numbers
//   "go on"                               →   ... until it has given all: "all"
//   copies the arena, starts a worker
//   "taken"                               →   will never go on by itself from here
//                                         ←   "yours", and ends
//
// Until "taken" the old tree goes on by itself, with another worker, when the new one goes away or
// is silent for too long. The arena is copied, so that nothing the new one does to it is in its
// way.
//
// Only processes of one user do this with each other. What comes is believed no more than what a
// worker that died left behind: it says who holds which descriptor, and each is looked at.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd::handover {

struct Message;

// What the new tree gets to see before anything stops, and goes on with.
struct Offered {
  UniqueFd arena;
  // The shared directory as the old tree has it, and what keeps all that is mounted below it there
  // (setns(2) may be forbidden; to have it open is enough).
  UniqueFd root;
  UniqueFd mount_namespace;
};

// Where a new tree may come to this process. Launcher. Errors of bind: EADDRINUSE in a network
// namespace that is shared with a namesake of another pid namespace.
Result<UniqueFd> open_door();

// The old tree's end. Supervisor.
class Heir {
 public:
  // Takes the connection that waits at `door` and hears whether it is one. A failure is no more
  // than worth a line in the log.
  static Result<Heir, Failure> meet(FdRef door);

  void refuse(std::string_view why);
  // Returns when it wants to go on from there.
  Result<void, Failure> offer(FdRef arena, FdRef root, FdRef mount_namespace);
  // Returns when it has taken everything over.
  Result<void, Failure> give(std::span<const int> descriptors);
  // Then: nothing that was given is used here any more.
  void let_go();

 private:
  explicit Heir(UniqueFd socket) : socket_(std::move(socket)) {}
  UniqueFd socket_;
};

// The new tree's end.
class Predecessor {
 public:
  // The tree of that launcher. A failure says what to do about it. New launcher.
  static Result<Predecessor, Failure> find(pid_t launcher);

  // What it has, and goes on using until take(). New supervisor, as take().
  Result<Offered, Failure> ask();
  // It stops: its descriptors by the numbers that they have in the arena.
  Result<std::unordered_map<int, UniqueFd>, Failure> take();
  // The successor goes on from here. After a failure the predecessor may as well. Launcher.
  Result<void, Failure> finish();
  // Waits until it is gone, and its files with it. ETIMEDOUT.
  Result<> wait_for_end(std::chrono::steady_clock::time_point deadline) const;

  // The supervisor's copy: the launcher's is the one that counts.
  void close() { socket_.reset(); }

 private:
  Predecessor(UniqueFd socket, UniqueFd process)
      : socket_(std::move(socket)), process_(std::move(process)) {}
  Result<Message, Failure> hear(std::chrono::seconds patience, std::vector<UniqueFd>& fds);

  UniqueFd socket_;
  UniqueFd process_;
};

}  // namespace virtiofsd::handover
