// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "state/stream.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace virtiofsd {
namespace {

constexpr std::size_t kGather = std::size_t{256} << 10;

void stop_blocking(FdRef fd) {
  const int flags = ::fcntl(fd.number(), F_GETFL);
  if (flags >= 0) (void)::fcntl(fd.number(), F_SETFL, flags | O_NONBLOCK);
}

// Until the channel can be written to or read from, or has failed, which the call itself tells.
Result<> await(FdRef channel, short events, FdRef cancelled) {
  std::array<pollfd, 2> both{{{channel.number(), events, 0}, {cancelled.number(), POLLIN, 0}}};
  while (::poll(both.data(), both.size(), -1) < 0) {
    if (errno != EINTR) return Errno::last();
  }
  if (both[1].revents != 0) return Errno{ECANCELED};
  return {};
}

bool is_full_or_interrupted() {
  return errno == EAGAIN || errno == EINTR;
}

}  // namespace

FrameWriter::FrameWriter(FdRef channel, FdRef cancelled)
    : channel_(channel), cancelled_(cancelled) {
  stop_blocking(channel);
  gathered_.reserve(kGather + sizeof(FrameHeader) + FrameHeader::kMostBytes);
}

Result<> FrameWriter::put(std::uint32_t kind,
                          std::initializer_list<std::span<const std::byte>> parts) {
  std::size_t size = 0;
  for (const auto& part : parts) size += part.size();
  if (size > FrameHeader::kMostBytes) return Errno{E2BIG};
  const FrameHeader header{.kind = kind, .size = static_cast<std::uint32_t>(size)};
  const auto gather = [&](std::span<const std::byte> bytes) {
    gathered_.insert(gathered_.end(), bytes.begin(), bytes.end());
  };
  gather(raw_bytes(header));
  for (const auto& part : parts) gather(part);
  if (gathered_.size() < kGather) return {};
  return flush();
}

Result<> FrameWriter::flush() {
  std::span<const std::byte> rest{gathered_};
  while (!rest.empty()) {
    TRY(await(channel_, POLLOUT, cancelled_));
    const ssize_t written = ::write(channel_.number(), rest.data(), rest.size());
    if (written < 0 && !is_full_or_interrupted()) return Errno::last();
    if (written > 0) rest = rest.subspan(static_cast<std::size_t>(written));
  }
  gathered_.clear();
  return {};
}

FrameReader::FrameReader(FdRef channel, FdRef cancelled)
    : channel_(channel),
      cancelled_(cancelled),
      buffer_(kGather + sizeof(FrameHeader) + FrameHeader::kMostBytes) {
  stop_blocking(channel);
}

Result<bool> FrameReader::fill(std::size_t bytes) {
  if (buffer_.size() - from_ < bytes) {
    std::copy(buffer_.begin() + static_cast<std::ptrdiff_t>(from_),
              buffer_.begin() + static_cast<std::ptrdiff_t>(to_), buffer_.begin());
    to_ -= from_;
    from_ = 0;
  }
  while (to_ - from_ < bytes) {
    TRY(await(channel_, POLLIN, cancelled_));
    const ssize_t got = ::read(channel_.number(), buffer_.data() + to_, buffer_.size() - to_);
    if (got < 0 && !is_full_or_interrupted()) return Errno::last();
    if (got == 0) return false;
    if (got > 0) to_ += static_cast<std::size_t>(got);
  }
  return true;
}

Result<FrameReader::Frame> FrameReader::next() {
  if (!TRY(fill(sizeof(FrameHeader)))) return Errno{ENODATA};
  FrameHeader header;
  std::memcpy(&header, buffer_.data() + from_, sizeof header);
  if (header.size > FrameHeader::kMostBytes) return Errno{EMSGSIZE};
  if (!TRY(fill(sizeof header + header.size))) return Errno{ENODATA};
  const std::span<const std::byte> body{buffer_.data() + from_ + sizeof header, header.size};
  from_ += sizeof header + header.size;
  return Frame{.kind = header.kind, .body = Reader{body}};
}

Result<> FrameReader::expect_end() {
  if (TRY(fill(1))) return Errno{EBADMSG};
  return {};
}

}  // namespace virtiofsd
