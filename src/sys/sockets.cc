// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sys/sockets.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <iterator>

#include "base/check.h"

namespace virtiofsd::sys {
namespace {

using Clock = std::chrono::steady_clock;

struct UnixAddress {
  sockaddr_un address{};
  socklen_t size = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

Result<UnixAddress> unix_address(std::string_view path) {
  if (path.empty() || path.contains('\0')) return Errno{EINVAL};
  UnixAddress result;
  // The kernel would take a path without its NUL; many programs that read it back would not.
  if (path.size() >= sizeof(result.address.sun_path)) return Errno{ENAMETOOLONG};
  result.address.sun_family = AF_UNIX;
  std::memcpy(result.address.sun_path, path.data(), path.size());
  result.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return result;
}

Result<UniqueFd> new_socket(int type) {
  UniqueFd fd{::socket(AF_UNIX, type | SOCK_CLOEXEC, 0)};
  if (!fd) return Errno::last();
  return fd;
}

Result<UniqueFd> bind_to(std::string_view path, int type) {
  const UnixAddress address = TRY(unix_address(path));
  UniqueFd fd = TRY(new_socket(type));
  if (::bind(fd.number(), address.get(), address.size) != 0) return Errno::last();
  return fd;
}

Result<UniqueFd> connect_to(std::string_view path, int type) {
  const UnixAddress address = TRY(unix_address(path));
  UniqueFd fd = TRY(new_socket(type));
  if (::connect(fd.number(), address.get(), address.size) != 0) return Errno::last();
  return fd;
}

Result<int> socket_option(FdRef socket, int option) {
  int value = 0;
  socklen_t size = sizeof(value);
  if (::getsockopt(socket.number(), SOL_SOCKET, option, &value, &size) != 0) return Errno::last();
  return value;
}

// Room for the control message of kMaxReceivedFds descriptors, aligned as the kernel wants it.
struct alignas(cmsghdr) ControlBuffer {
  std::array<std::byte, CMSG_SPACE(kMaxReceivedFds * sizeof(int))> bytes{};
};

// Takes over every descriptor in the control data, so that each is closed exactly once.
void take_descriptors(msghdr& message, std::vector<UniqueFd>& fds) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      fds.emplace_back(number);
    }
  }
}

Result<> poll_one(FdRef fd, short events, const timespec* timeout) {
  pollfd entry{.fd = fd.number(), .events = events, .revents = 0};
  const int ready = ::ppoll(&entry, 1, timeout, nullptr);
  if (ready < 0) return Errno::last();
  if (ready == 0) return Errno{ETIMEDOUT};
  if ((entry.revents & POLLNVAL) != 0) return Errno{EBADF};
  return {};
}

}  // namespace

Result<UniqueFd> bind_unix(std::string_view path) {
  return bind_to(path, SOCK_STREAM);
}

Result<> listen(FdRef socket, int backlog) {
  if (::listen(socket.number(), backlog) != 0) return Errno::last();
  return {};
}

Result<UniqueFd> accept(FdRef listener) {
  UniqueFd fd{::accept4(listener.number(), nullptr, nullptr, SOCK_CLOEXEC)};
  if (!fd) return Errno::last();
  return fd;
}

Result<UniqueFd> connect_unix(std::string_view path) {
  return connect_to(path, SOCK_STREAM);
}

Result<UniqueFd> listen_for_packets(std::string_view path) {
  UniqueFd fd = TRY(bind_to(path, SOCK_SEQPACKET));
  TRY(listen(fd, 1));
  return fd;
}

Result<UniqueFd> connect_for_packets(std::string_view path) {
  return connect_to(path, SOCK_SEQPACKET);
}

Result<Peer> peer_of(FdRef socket) {
  ucred found{};
  socklen_t size = sizeof(found);
  if (::getsockopt(socket.number(), SOL_SOCKET, SO_PEERCRED, &found, &size) != 0)
    return Errno::last();
  return Peer{.pid = found.pid, .uid = found.uid};
}

Result<SocketPair> unix_socket_pair() {
  std::array<int, 2> numbers{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, numbers.data()) != 0) {
    return Errno::last();
  }
  return SocketPair{UniqueFd{numbers[0]}, UniqueFd{numbers[1]}};
}

Result<bool> is_unix_stream(FdRef fd) {
  const Result<int> domain = socket_option(fd, SO_DOMAIN);
  if (!domain) {
    if (domain.error() == Errno{ENOTSOCK}) return false;
    return domain.error();
  }
  return *domain == AF_UNIX && TRY(socket_option(fd, SO_TYPE)) == SOCK_STREAM;
}

Result<bool> is_listening(FdRef socket) {
  return TRY(socket_option(socket, SO_ACCEPTCONN)) != 0;
}

Result<std::size_t> receive(FdRef socket, std::span<std::byte> out, std::vector<UniqueFd>& fds) {
  CHECK(!out.empty());
  ControlBuffer control;
  iovec piece{.iov_base = out.data(), .iov_len = out.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen = control.bytes.size();

  ssize_t size = -1;
  do {
    size = ::recvmsg(socket.number(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (size < 0 && errno == EINTR);
  if (size < 0) return Errno::last();

  std::vector<UniqueFd> received;
  take_descriptors(message, received);
  if ((message.msg_flags & MSG_CTRUNC) != 0) return Errno{EMSGSIZE};
  std::ranges::move(received, std::back_inserter(fds));
  return static_cast<std::size_t>(size);
}

Result<std::size_t> send(FdRef socket, std::span<const std::byte> bytes,
                         std::span<const FdRef> fds) {
  CHECK(!bytes.empty() && fds.size() <= kMaxReceivedFds);
  ControlBuffer control;
  // sendmsg only reads it; iovec has no const form.
  iovec piece{.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.bytes.data();
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    for (std::size_t i = 0; i < fds.size(); ++i) {
      const int number = fds[i].number();
      std::memcpy(CMSG_DATA(part) + i * sizeof(int), &number, sizeof(int));
    }
  }

  ssize_t size = -1;
  do {
    size = ::sendmsg(socket.number(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (size < 0 && errno == EINTR);
  if (size < 0) return Errno::last();
  return static_cast<std::size_t>(size);
}

Result<> send_all(FdRef socket, std::span<const std::byte> bytes, std::span<const FdRef> fds,
                  Clock::time_point deadline) {
  while (!bytes.empty()) {
    const Result<std::size_t> sent = send(socket, bytes, fds);
    if (sent) {
      bytes = bytes.subspan(*sent);
      fds = {};
      continue;
    }
    if (sent.error() != Errno{EAGAIN}) return sent.error();
    TRY(wait_until(socket, POLLOUT, deadline));
  }
  return {};
}

Result<> wait_until(FdRef fd, short events, Clock::time_point deadline) {
  while (true) {
    const auto left = std::max(deadline - Clock::now(), Clock::duration::zero());
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec timeout{
        .tv_sec = seconds.count(),
        .tv_nsec = std::chrono::duration_cast<std::chrono::nanoseconds>(left - seconds).count()};
    const Result<> ready = poll_one(fd, events, &timeout);
    if (ready || ready.error() != Errno{EINTR}) return ready ? Result<>{} : ready.error();
  }
}

Result<> wait_for(FdRef fd, short events) {
  while (true) {
    const Result<> ready = poll_one(fd, events, nullptr);
    if (ready || ready.error() != Errno{EINTR}) return ready ? Result<>{} : ready.error();
  }
}

Result<Either> wait_for_either(FdRef first, FdRef second) {
  std::array<pollfd, 2> entries{{{.fd = first.number(), .events = POLLIN, .revents = 0},
                                 {.fd = second.number(), .events = POLLIN, .revents = 0}}};
  int ready = -1;
  do {
    ready = ::ppoll(entries.data(), entries.size(), nullptr, nullptr);
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) return Errno::last();
  return entries[1].revents != 0 ? Either::kSecond : Either::kFirst;
}

}  // namespace virtiofsd::sys
