// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Requests of ours to the VMM, on the socket that SET_BACKEND_REQ_FD brought.
// One request at a time: a caller waits for the one before it, and with
// `kReply` for the VMM's word on its own. No wait is longer than kPatience; a
// VMM that is silent for longer, or says something that is no reply, has broken
// the channel, and every later call fails with EPIPE at once, because a late
// reply could no longer be told from the next one.
// Any thread. The VMM may be waiting for us meanwhile (GET_VRING_BASE), so the
// session thread should not wait for replies here.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/sync.h"
#include "sys/fd.h"
#include "vhost_user/connection.h"
#include "vhost_user/message.h"

namespace virtiofsd::vhost_user {

enum class Wait : std::uint8_t { kNoReply, kReply };

class BackendChannel {
 public:
  static constexpr std::chrono::milliseconds kPatience{5000};

  // `protocol_features` as negotiated. `patience` is for tests.
  BackendChannel(UniqueFd socket, std::uint64_t protocol_features,
                 std::chrono::milliseconds patience = kPatience);

  // Errors of all: EOPNOTSUPP: the feature isn't negotiated (or kReply without REPLY_ACK);
  // EIO: the VMM refused; EPIPE: the channel is broken; ETIMEDOUT: it just broke.

  // CONFIG: the device's configuration space changed.
  Result<> config_changed() EXCLUDES(mutex_);
  // INBAND_NOTIFICATIONS: buffers of this ring were used.
  Result<> vring_call(std::uint32_t index, Wait wait) EXCLUDES(mutex_);
  // INBAND_NOTIFICATIONS: this ring is broken.
  Result<> vring_error(std::uint32_t index) EXCLUDES(mutex_);
  // SHMEM: maps `size` bytes at `file_offset` of `file` at `region_offset` of shared memory
  // region `id` and waits until it is done. Over an existing mapping it fails.
  Result<> shmem_map(std::uint8_t id, std::uint64_t region_offset, std::uint64_t size, FdRef file,
                     std::uint64_t file_offset, bool writable) EXCLUDES(mutex_);
  // SHMEM: undoes exactly one shmem_map and waits until it is done.
  Result<> shmem_unmap(std::uint8_t id, std::uint64_t region_offset, std::uint64_t size)
      EXCLUDES(mutex_);

 private:
  bool has(ProtocolFeature feature) const { return (protocol_features_ & bit(feature)) != 0; }
  Result<> request(BackendRequest request, std::span<const std::byte> payload, FdRef fd, Wait wait)
      EXCLUDES(mutex_);
  Result<> converse(BackendRequest request, std::span<const std::byte> payload, FdRef fd, Wait wait)
      REQUIRES(mutex_);
  Result<> await_reply(BackendRequest request, std::chrono::steady_clock::time_point deadline)
      REQUIRES(mutex_);

  const std::uint64_t protocol_features_;
  const std::chrono::milliseconds patience_;
  Mutex mutex_;  // held for a whole request with its reply: that is what orders the stream
  Connection connection_ GUARDED_BY(mutex_);
  bool broken_ GUARDED_BY(mutex_) = false;
};

}  // namespace virtiofsd::vhost_user
