// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sys/events.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>

#include "base/check.h"

namespace virtiofsd::sys {
namespace {

constexpr std::uint64_t kOne = 1;

bool ready_now(FdRef fd, short events) {
  pollfd waiter{.fd = fd.number(), .events = events, .revents = 0};
  return ::poll(&waiter, 1, 0) == 1 && (waiter.revents & events) != 0;
}

// MSG_NOSIGNAL exists only for sockets. For a pipe the thread looks away while
// it writes and takes back the SIGPIPE it caused, but not one that was pending.
void write_to_pipe(FdRef fd) {
  if (!ready_now(fd, POLLOUT)) return;

  sigset_t pipe_signal;
  sigset_t before;
  sigset_t pending;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  sigpending(&pending);
  CHECK(::pthread_sigmask(SIG_BLOCK, &pipe_signal, &before) == 0);

  iovec bytes{.iov_base = const_cast<std::uint64_t*>(&kOne), .iov_len = sizeof(kOne)};
  ssize_t written = ::pwritev2(fd.number(), &bytes, 1, -1, RWF_NOWAIT);
  // Kernels before 6.4 can't do that on a pipe; there was room a moment ago.
  if (written < 0 && errno == EOPNOTSUPP) written = ::write(fd.number(), &kOne, sizeof(kOne));
  if (written < 0 && errno == EPIPE && sigismember(&pending, SIGPIPE) == 0) {
    const timespec now{};
    ::sigtimedwait(&pipe_signal, nullptr, &now);
  }
  CHECK(::pthread_sigmask(SIG_SETMASK, &before, nullptr) == 0);
}

}  // namespace

bool drain_event(FdRef fd) {
  std::array<std::uint64_t, 32> sink;  // an eventfd fills one; pipes and sockets queue several
  iovec bytes{.iov_base = sink.data(), .iov_len = sizeof(sink)};
  ssize_t taken = ::preadv2(fd.number(), &bytes, 1, -1, RWF_NOWAIT);
  if (taken < 0 && errno == EOPNOTSUPP) {
    if (!ready_now(fd, POLLIN)) return false;
    taken = ::read(fd.number(), sink.data(), sizeof(sink));
  }
  return taken > 0;
}

Result<EventFd> EventFd::create() {
  UniqueFd fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!fd) return Errno::last();
  return EventFd{std::move(fd)};
}

void EventFd::signal() const {
  // EAGAIN: the counter is full, so whoever waits is awake.
  const ssize_t written = ::write(fd_.number(), &kOne, sizeof(kOne));
  CHECK(written == sizeof(kOne) || errno == EAGAIN || errno == EINTR);
}

bool EventFd::drain() const {
  std::uint64_t count = 0;
  return ::read(fd_.number(), &count, sizeof(count)) == sizeof(count);
}

Result<Notifier> Notifier::make(UniqueFd fd) {
  struct stat status {};
  if (::fstat(fd.number(), &status) != 0) return Errno::last();
  const int flags = ::fcntl(fd.number(), F_GETFL);
  if (flags < 0) return Errno::last();
  Kind kind = (flags & O_NONBLOCK) != 0 ? Kind::kNonBlocking : Kind::kBlocking;
  if (S_ISSOCK(status.st_mode)) kind = Kind::kSocket;
  if (S_ISFIFO(status.st_mode)) kind = Kind::kPipe;
  return Notifier{std::move(fd), kind};
}

void Notifier::notify() const {
  const int saved = errno;
  switch (kind_) {
    case Kind::kSocket:
      (void)::send(fd_.number(), &kOne, sizeof(kOne), MSG_DONTWAIT | MSG_NOSIGNAL);
      break;
    case Kind::kPipe:
      write_to_pipe(fd_);
      break;
    case Kind::kBlocking:
      // A full eventfd would block; its O_NONBLOCK is shared with the peer and not ours to set.
      if (!ready_now(fd_, POLLOUT)) break;
      [[fallthrough]];
    case Kind::kNonBlocking: {
      [[maybe_unused]] const ssize_t written = ::write(fd_.number(), &kOne, sizeof(kOne));
      break;
    }
  }
  errno = saved;
}

}  // namespace virtiofsd::sys
