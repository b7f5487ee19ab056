// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Unix sockets, with descriptors riding along; streams where nothing else is said. Every socket and
// every received descriptor is close-on-exec. Nothing here raises SIGPIPE, and only accept and the
// connects may block; the rest answers EAGAIN. Any thread.
#pragma once

#include <poll.h>
#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd::sys {

// Descriptors one receive takes at most.
inline constexpr std::size_t kMaxReceivedFds = 32;

// A new socket bound to `path`, not yet listening. The umask decides who may connect.
// ENAMETOOLONG: the path doesn't fit a socket address (107 bytes); EINVAL: it is
// empty or holds a NUL; EADDRINUSE: something is there already.
Result<UniqueFd> bind_unix(std::string_view path);
Result<> listen(FdRef socket, int backlog);
// Waits for the next connection. EINTR when a signal came first.
Result<UniqueFd> accept(FdRef listener);
// Errors as bind_unix, and ECONNREFUSED when nobody listens.
Result<UniqueFd> connect_unix(std::string_view path);

// The same with a socket of sequenced packets: what is sent arrives whole, or not at all.
Result<UniqueFd> listen_for_packets(std::string_view path);
Result<UniqueFd> connect_for_packets(std::string_view path);

// Who connected, or who listened where we connected, as this process's namespaces name them.
struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;
};
Result<Peer> peer_of(FdRef socket);

struct SocketPair {
  UniqueFd first;
  UniqueFd second;
};
Result<SocketPair> unix_socket_pair();

// Is it a unix stream socket? False for anything else that is open; EBADF if it is not.
Result<bool> is_unix_stream(FdRef fd);
// Does it listen (SO_ACCEPTCONN), or is it a connection already? ENOTSOCK when it is no socket.
Result<bool> is_listening(FdRef socket);

// Takes what is there, at most `out.size()` bytes (not 0), without waiting, and appends the
// descriptors that came with it to `fds`. 0: the peer closed. EAGAIN: nothing there.
// EMSGSIZE: descriptors were lost, because there were more than kMaxReceivedFds or more than
// this process may open; those that did arrive are closed.
Result<std::size_t> receive(FdRef socket, std::span<std::byte> out, std::vector<UniqueFd>& fds);

// Sends what fits now, without waiting; `fds` (at most kMaxReceivedFds) go with the first byte.
// EAGAIN: no room. EPIPE: the peer is gone.
Result<std::size_t> send(FdRef socket, std::span<const std::byte> bytes,
                         std::span<const FdRef> fds);

// Sends all of it, waiting for room until `deadline` (ETIMEDOUT; how much went out is unknown
// then).
Result<> send_all(FdRef socket, std::span<const std::byte> bytes, std::span<const FdRef> fds,
                  std::chrono::steady_clock::time_point deadline);

// Waits until `events` (POLLIN, POLLOUT) or an error can be had of the descriptor. ETIMEDOUT.
Result<> wait_until(FdRef fd, short events, std::chrono::steady_clock::time_point deadline);
// The same without an end.
Result<> wait_for(FdRef fd, short events);
// Waits until one of them can be read or has an error; the second may be none. Both: the second.
enum class Either : std::uint8_t { kFirst, kSecond };
Result<Either> wait_for_either(FdRef first, FdRef second);

}  // namespace virtiofsd::sys
