// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Whole messages over a stream socket that cuts them as it likes. Descriptors
// belong to the message whose bytes they arrived with. After an error the
// stream is out of step and the connection is of no more use.
// One thread at a time.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "sys/fd.h"
#include "vhost_user/message.h"

namespace virtiofsd::vhost_user {

enum class Received : std::uint8_t {
  kMessage,  // message() is whole
  kPart,     // the peer has sent only part of a message so far
  kClosed,   // the peer closed between two messages
};

// Which way this end listens: a back-end gets requests on the main socket, and replies on the
// one it was given for requests of its own.
enum class Expects : std::uint8_t { kRequests, kReplies };

class Connection {
 public:
  explicit Connection(UniqueFd socket, Expects expects = Expects::kRequests)
      : socket_(std::move(socket)), expects_(expects) {}

  FdRef fd() const { return socket_; }

  // Waits for the first bytes, then takes what has arrived of one message, without waiting for
  // the rest. Never takes a byte of the message after it. Errors:
  // EPROTO: wrong version, or a reply where a request belongs or the other way round; EMSGSIZE: a
  // payload over kMaxPayload or more than kMaxFds descriptors; ECONNRESET: closed in mid-message;
  // what recvmsg says.
  Result<Received> receive();

  // Bytes of a message are here and it isn't whole.
  bool in_mid_message() const { return arrived_ != 0 && !complete_; }

  // The message receive() completed; good, with its descriptors, until the next receive().
  Message& message() { return message_; }

  // Sends one message whole. A peer that doesn't read gets until `deadline` (ETIMEDOUT).
  Result<> send(const Header& header, std::span<const std::byte> payload,
                std::span<const FdRef> fds, std::chrono::steady_clock::time_point deadline);

 private:
  Result<> check_header() const;

  UniqueFd socket_;
  const Expects expects_;
  Message message_;
  std::array<std::byte, sizeof(Header)> header_bytes_{};
  std::size_t arrived_ = 0;  // bytes of header and payload that are here
  bool complete_ = false;    // message_ is whole; the next receive() starts afresh
};

}  // namespace virtiofsd::vhost_user
