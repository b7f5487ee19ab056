// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// How a process tree hands a running device over to another one, of a newer program: the VMM keeps
// its connection, the guest its files. What is said, over a sequenced-packet socket in a directory
// that is open to their user only, with the old launcher's pid for a name:
//
//   the new tree                              the old tree (supervisor)
//   "hello" (launcher)                    →
//                                         ←   "offer", with the arena, the shared directory and
//                                             its mount namespace; or "no", and why not
//   looks whether that suits it: "give"   →   stops its worker, between two messages
//                                         ←   "some": descriptors, with their numbers
//   "go on"                               →   ... until it has given all: "all"
//   copies the arena, starts a worker
//   "taken" (launcher)                    →   will never go on by itself from here
//                                         ←   "yours", and ends
//
// Until "taken" the old tree goes on by itself, with another worker, when the new one goes away or
// is silent for too long. The arena is copied, so that nothing the new one does to it is in its
// way.
//
// Who can come to that socket could have all that is handed over anyway. (A name known to the whole
// network namespace would let in whoever has the same user id in another container.) What comes is
// believed no more than what a worker that died left behind: it says who holds which descriptor,
// and each is looked at.
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <string>
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

// Where a new tree may come. Launcher, which removes it in the end; the socket is the supervisor's.
class Door {
 public:
  // This process's: /run/virtiofsd-take-over/PID for root, else in $XDG_RUNTIME_DIR. A failure says
  // why this process can't be taken over later.
  static Result<Door, Failure> open();
  void remove();

  UniqueFd socket;

 private:
  std::string path_;
};

// The old tree's end. Supervisor.
class Heir {
 public:
  // Takes the connection that waits at `door` and hears whether it is one. A failure is no more
  // than worth a line in the log.
  static Result<Heir, Failure> meet(FdRef door);

  // Readable when there is something to hear.
  FdRef fd() const { return socket_; }
  void refuse(std::string_view why);
  Result<void, Failure> offer(FdRef arena, FdRef root, FdRef mount_namespace);
  // Whether it wants to go on from there. Waits for its word.
  Result<void, Failure> hear_wish();
  // Returns when it has taken everything over.
  Result<void, Failure> give(std::span<const int> descriptors);
  // Then: nothing that was given is used here any more. A failure: it is gone, so it is.
  Result<void, Failure> let_go();

 private:
  explicit Heir(UniqueFd socket) : socket_(std::move(socket)) {}
  UniqueFd socket_;
};

// The new tree's end.
class Predecessor {
 public:
  // The tree of that launcher, which knows from now on. A failure says what to do about it. New
  // launcher.
  static Result<Predecessor, Failure> find(pid_t launcher);

  // What it has, and goes on using until take(). New supervisor, as take().
  Result<Offered, Failure> ask();
  // It stops: its descriptors by the numbers that they have in the arena.
  Result<std::unordered_map<int, UniqueFd>, Failure> take();
  // The successor goes on from here. After a failure the predecessor may as well. Launcher.
  Result<void, Failure> finish();
  // Waits until its launcher is gone, and ends it after a second. ETIMEDOUT: it hangs in the
  // kernel.
  Result<> see_off() const;

  // The supervisor's copy, when it has everything: the launcher's is the one that counts.
  void close();
  std::array<int, 2> descriptors() const { return {socket_.number(), process_.number()}; }

 private:
  Predecessor(UniqueFd socket, UniqueFd process)
      : socket_(std::move(socket)), process_(std::move(process)) {}
  Result<Message, Failure> hear(std::chrono::seconds patience, std::vector<UniqueFd>& fds);

  UniqueFd socket_;
  UniqueFd process_;
};

}  // namespace virtiofsd::handover
