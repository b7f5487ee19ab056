// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "vhost_user/backend_channel.h"

#include <utility>

#include "base/log.h"
#include "base/reader.h"
#include "sys/sockets.h"

namespace virtiofsd::vhost_user {

BackendChannel::BackendChannel(UniqueFd socket, std::uint64_t protocol_features,
                               std::chrono::milliseconds patience)
    : protocol_features_(protocol_features),
      patience_(patience),
      connection_(std::move(socket), Expects::kReplies) {}

Result<> BackendChannel::config_changed() {
  if (!has(ProtocolFeature::kConfig)) return Errno{EOPNOTSUPP};
  return request(BackendRequest::kConfigChange, {}, FdRef{}, Wait::kNoReply);
}

Result<> BackendChannel::vring_call(std::uint32_t index, Wait wait) {
  if (!has(ProtocolFeature::kInbandNotifications)) return Errno{EOPNOTSUPP};
  const VringState state{.index = index, .num = 0};
  return request(BackendRequest::kVringCall, bytes_of(state), FdRef{}, wait);
}

Result<> BackendChannel::vring_error(std::uint32_t index) {
  if (!has(ProtocolFeature::kInbandNotifications)) return Errno{EOPNOTSUPP};
  const VringState state{.index = index, .num = 0};
  return request(BackendRequest::kVringErr, bytes_of(state), FdRef{}, Wait::kNoReply);
}

Result<> BackendChannel::shmem_map(std::uint8_t id, std::uint64_t region_offset, std::uint64_t size,
                                   FdRef file, std::uint64_t file_offset, bool writable) {
  if (!has(ProtocolFeature::kShmem) || !has(ProtocolFeature::kBackendSendFd)) {
    return Errno{EOPNOTSUPP};
  }
  const ShmemMapping mapping{.id = id,
                             .padding = {},
                             .file_offset = file_offset,
                             .region_offset = region_offset,
                             .size = size,
                             .flags = writable ? kShmemWritable : 0};
  return request(BackendRequest::kShmemMap, bytes_of(mapping), file, Wait::kReply);
}

Result<> BackendChannel::shmem_unmap(std::uint8_t id, std::uint64_t region_offset,
                                     std::uint64_t size) {
  if (!has(ProtocolFeature::kShmem)) return Errno{EOPNOTSUPP};
  const ShmemMapping mapping{.id = id,
                             .padding = {},
                             .file_offset = 0,
                             .region_offset = region_offset,
                             .size = size,
                             .flags = 0};
  return request(BackendRequest::kShmemUnmap, bytes_of(mapping), FdRef{}, Wait::kReply);
}

Result<> BackendChannel::request(BackendRequest request, std::span<const std::byte> payload,
                                 FdRef fd, Wait wait) {
  if (wait == Wait::kReply && !has(ProtocolFeature::kReplyAck)) return Errno{EOPNOTSUPP};
  const Lock lock{mutex_};
  if (broken_) return Errno{EPIPE};
  const Result<> done = converse(request, payload, fd, wait);
  if (!done) {
    log::warn("vhost-user: {} failed: {}{}", name(request), done.error().text(),
              broken_ ? "; no further requests will be sent to the VMM" : "");
    return done.error();
  }
  return {};
}

Result<> BackendChannel::converse(BackendRequest request, std::span<const std::byte> payload,
                                  FdRef fd, Wait wait) {
  log::debug("vhost-user: sending {}{}", name(request),
             wait == Wait::kReply ? ", waiting for the reply" : "");
  const auto deadline = std::chrono::steady_clock::now() + patience_;
  const Header header{
      .request = static_cast<std::uint32_t>(request),
      .flags = kVersion | (wait == Wait::kReply ? kFlagNeedReply : 0),
      .size = static_cast<std::uint32_t>(payload.size()),
  };
  // Set until proven otherwise: whatever returns early leaves the stream out of step.
  broken_ = true;
  TRY(connection_.send(header, payload, std::span<const FdRef>(&fd, fd.valid() ? 1 : 0), deadline));
  if (wait == Wait::kReply) {
    TRY(await_reply(request, deadline));
    broken_ = false;
    Reader reader{connection_.message().payload()};
    if (TRY(reader.take<std::uint64_t>()) != 0) return Errno{EIO};
  }
  broken_ = false;
  return {};
}

Result<> BackendChannel::await_reply(BackendRequest request,
                                     std::chrono::steady_clock::time_point deadline) {
  while (true) {
    TRY(sys::wait_until(connection_.fd(), POLLIN, deadline));
    switch (TRY(connection_.receive())) {
      case Received::kPart:
        continue;
      case Received::kClosed:
        return Errno{EPIPE};
      case Received::kMessage:
        break;
    }
    // A reply carries no descriptors; any that came must not stay open until the next one.
    connection_.message().fds.clear();
    const Header& header = connection_.message().header;
    if (header.request != static_cast<std::uint32_t>(request) ||
        header.size != sizeof(std::uint64_t)) {
      return Errno{EPROTO};
    }
    return {};
  }
}

}  // namespace virtiofsd::vhost_user
