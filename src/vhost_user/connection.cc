// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "vhost_user/connection.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "sys/sockets.h"

namespace virtiofsd::vhost_user {

Result<> Connection::check_header() const {
  const Header& header = message_.header;
  if ((header.flags & kFlagVersionMask) != kVersion) return Errno{EPROTO};
  const bool is_reply = (header.flags & kFlagReply) != 0;
  if (is_reply != (expects_ == Expects::kReplies)) return Errno{EPROTO};
  if (header.size > kMaxPayload) return Errno{EMSGSIZE};
  return {};
}

Result<Received> Connection::receive() {
  if (complete_) {
    complete_ = false;
    arrived_ = 0;
    message_.fds.clear();
  }

  bool may_wait = true;
  while (true) {
    std::span<std::byte> missing;
    if (arrived_ < sizeof(Header)) {
      missing = std::span(header_bytes_).subspan(arrived_);
    } else {
      missing =
          std::span(message_.bytes).first(message_.header.size).subspan(arrived_ - sizeof(Header));
    }
    const Result<std::size_t> size = sys::receive(socket_, missing, message_.fds);
    if (!size) {
      if (size.error() != Errno{EAGAIN}) return size.error();
      if (!may_wait) return Received::kPart;
      TRY(sys::wait_for(socket_, POLLIN));
      continue;
    }
    if (*size == 0) {
      if (arrived_ == 0) return Received::kClosed;
      return Errno{ECONNRESET};
    }
    may_wait = false;
    arrived_ += *size;
    if (message_.fds.size() > kMaxFds) return Errno{EMSGSIZE};
    if (arrived_ < sizeof(Header)) continue;
    if (arrived_ == sizeof(Header)) {
      std::memcpy(&message_.header, header_bytes_.data(), sizeof(Header));
      TRY(check_header());
    }
    if (arrived_ == sizeof(Header) + message_.header.size) {
      complete_ = true;
      return Received::kMessage;
    }
  }
}

Result<> Connection::send(const Header& header, std::span<const std::byte> payload,
                          std::span<const FdRef> fds,
                          std::chrono::steady_clock::time_point deadline) {
  CHECK(payload.size() == header.size && payload.size() <= kMaxPayload);
  std::array<std::byte, sizeof(Header) + kMaxPayload> bytes;
  std::memcpy(bytes.data(), &header, sizeof(Header));
  std::ranges::copy(payload, bytes.begin() + sizeof(Header));
  return sys::send_all(socket_, std::span(bytes).first(sizeof(Header) + payload.size()), fds,
                       deadline);
}

}  // namespace virtiofsd::vhost_user
