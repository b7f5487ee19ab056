// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Waking and being woken through descriptors. EventFd is ours. A Notifier
// wakes somebody else through a descriptor they chose, which may be an eventfd,
// a pipe or a stream socket. Nothing here ever waits or raises SIGPIPE. Any thread.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd::sys {

// Takes what waits in an eventfd, pipe or socket without waiting for more, also
// when the descriptor is a blocking one. True when there was something.
bool drain_event(FdRef fd);

// A counter that wakes pollers: signalled until it is drained.
class EventFd {
 public:
  static Result<EventFd> create();

  void signal() const;
  // True when it was signalled since the last time.
  bool drain() const;
  FdRef ref() const { return fd_.ref(); }

 private:
  explicit EventFd(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
};

// A peer's descriptor that a notification is written to: eight bytes, the
// number one. A descriptor that is full has a notification waiting already, and
// one that nobody reads any more needs none, so notify has nothing to report.
class Notifier {
 public:
  // Looks once at what kind of descriptor it is. EBADF when it is none.
  static Result<Notifier> make(UniqueFd fd);

  void notify() const;
  FdRef ref() const { return fd_.ref(); }
  bool is_socket() const { return kind_ == Kind::kSocket; }

 private:
  enum class Kind : std::uint8_t { kNonBlocking, kBlocking, kPipe, kSocket };

  Notifier(UniqueFd fd, Kind kind) : fd_(std::move(fd)), kind_(kind) {}

  UniqueFd fd_;
  Kind kind_;
};

}  // namespace virtiofsd::sys
