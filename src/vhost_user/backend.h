// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What a Session asks of the device behind it: one method per request of the
// VMM, in the words of the vhost-user protocol. The Session has already checked
// what can be checked without knowing the device: payload sizes, descriptor
// counts, that ring indexes are below queue_count(), and that only features on
// offer are set. Everything else in the arguments is still the VMM's word.
//
// All methods run on the thread that calls Session::serve_one, one at a time.
// An error refuses the request (the VMM gets a non-zero acknowledgement if it
// asked for one); it never ends the connection, and must leave things as they were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd::vhost_user {

// A piece of guest memory as the VMM describes it. Nothing about it is checked
// yet: size may be 0, ranges may wrap or overlap, the file may be shorter.
struct MemoryRegion {
  GuestAddress guest;
  VmmAddress vmm;
  std::uint64_t size = 0;         // bytes
  std::uint64_t mmap_offset = 0;  // where in `file` the region begins, bytes
  UniqueFd file;                  // not set in remove_mem_region
};

// Where a ring is. Address is VmmAddress, or GuestAddress once GPA_ADDRESSES is negotiated.
template <typename Address>
struct RingAddresses {
  Address descriptors;
  Address available;                // packed rings: the driver event area
  Address used;                     // packed rings: the device event area
  std::optional<GuestAddress> log;  // where writes to `used` are logged, if they are
};

// The shared area that tracks requests in flight (INFLIGHT_SHMFD).
struct InflightArea {
  std::uint64_t mmap_size = 0;    // bytes
  std::uint64_t mmap_offset = 0;  // bytes
  std::uint16_t queues = 0;
  std::uint16_t queue_size = 0;
  UniqueFd file;
};

enum class TransferDirection : std::uint8_t { kSave, kLoad };
enum class ConfigWriter : std::uint8_t { kGuest, kMigration };

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // Virtio and vhost feature bits on offer. The Session adds PROTOCOL_FEATURES (bit 30) itself.
  virtual std::uint64_t features() const = 0;
  // A subset of what is on offer (bit 30 may be among them). Comes again while rings run to
  // switch LOG_ALL, which must not disturb them.
  virtual Result<> set_features(std::uint64_t features) = 0;

  // Protocol feature bits on offer. The Session adds REPLY_ACK itself. Offering a bit means the
  // methods that belong to it are implemented.
  virtual std::uint64_t protocol_features() const = 0;
  // A subset of what is on offer.
  virtual Result<> set_protocol_features(std::uint64_t features) = 0;

  virtual void set_owner() = 0;
  // Deprecated by the protocol: disable all rings, no more.
  virtual void reset_owner() = 0;
  // RESET_DEVICE: disable all rings and forget device state; negotiated features, memory and
  // the connection stay. QEMU sends it at every reset of the guest's device, also before first use.
  virtual Result<> reset_device() { return Errno{EOPNOTSUPP}; }

  // How many rings there are (high priority and request), 1 to 256. Never changes.
  virtual std::uint32_t queue_count() const = 0;

  // Replaces all memory; at most 8 regions, possibly none.
  virtual Result<> set_mem_table(std::vector<MemoryRegion> regions) = 0;
  virtual Result<> add_mem_region(MemoryRegion region) = 0;
  // The region is found by guest address, VMM address and size; mmap_offset doesn't count.
  virtual Result<> remove_mem_region(const MemoryRegion& region) = 0;
  virtual std::uint64_t max_mem_slots() const { return 509; }

  virtual Result<> set_vring_size(std::uint32_t index, std::uint32_t size) = 0;
  virtual Result<> set_vring_addresses(std::uint32_t index,
                                       const RingAddresses<VmmAddress>& addresses) = 0;
  virtual Result<> set_vring_addresses(std::uint32_t /*index*/,
                                       const RingAddresses<GuestAddress>& /*addresses*/) {
    return Errno{EOPNOTSUPP};
  }
  // Split rings: the next available index. Packed rings: available index and wrap bit in the
  // lower half, used index and wrap bit in the upper half.
  virtual Result<> set_vring_base(std::uint32_t index, std::uint32_t base) = 0;
  // Stops the ring, returns once nothing of it is in flight any more, in the encoding of
  // set_vring_base.
  virtual Result<std::uint32_t> get_vring_base(std::uint32_t index) = 0;

  // The descriptor that becomes readable on a kick; none means "poll the ring". Starts the ring.
  // When PROTOCOL_FEATURES was not acknowledged the Session has just enabled the ring before.
  virtual Result<> set_vring_kick(std::uint32_t index, std::optional<UniqueFd> kick) = 0;
  // An eventfd, a pipe or a stream socket to write 8 bytes to; none means "never signal".
  virtual Result<> set_vring_call(std::uint32_t index, std::optional<UniqueFd> call) = 0;
  virtual Result<> set_vring_error(std::uint32_t index, std::optional<UniqueFd> error) = 0;
  virtual Result<> set_vring_enable(std::uint32_t index, bool enabled) = 0;
  // INBAND_NOTIFICATIONS: a kick as a message.
  virtual Result<> vring_kick(std::uint32_t /*index*/) { return Errno{EOPNOTSUPP}; }

  // Reads device configuration space into `out`, which is zero: bytes past the end of the
  // space stay so. `offset` may lie anywhere.
  virtual Result<> get_config(std::uint32_t /*offset*/, std::span<std::byte> /*out*/) {
    return Errno{EOPNOTSUPP};
  }
  virtual Result<> set_config(std::uint32_t /*offset*/, std::span<const std::byte> /*bytes*/,
                              ConfigWriter /*writer*/) {
    return Errno{EOPNOTSUPP};
  }

  // The dirty bitmap: `size` bytes at `offset` of `file`, one bit per 4 KiB page of guest memory.
  virtual Result<> set_log_base(std::uint64_t /*size*/, std::uint64_t /*offset*/,
                                UniqueFd /*file*/) {
    return Errno{EOPNOTSUPP};
  }
  // Signalled, if at all, when the log changed. No front-end is known to look at it.
  virtual Result<> set_log_fd(UniqueFd /*event*/) { return {}; }

  // The socket for requests of ours (backend_channel.h speaks on it).
  virtual Result<> set_backend_request_fd(UniqueFd /*socket*/) { return Errno{EOPNOTSUPP}; }

  // The virtio status byte. 0 asks for a reset of the device.
  virtual Result<> set_status(std::uint64_t /*status*/) { return Errno{EOPNOTSUPP}; }
  virtual std::uint64_t status() const { return 0; }

  // A new area for `queues` rings of `queue_size` entries each.
  virtual Result<InflightArea> get_inflight_fd(std::uint16_t /*queues*/,
                                               std::uint16_t /*queue_size*/) {
    return Errno{EOPNOTSUPP};
  }
  // The area a back-end before us was given; what is in it is as little trusted as the rest.
  virtual Result<> set_inflight_fd(InflightArea /*area*/) { return Errno{EOPNOTSUPP}; }

  // Starts saving to or loading from `channel` while the guest is stopped. Returns a descriptor
  // the VMM is to use instead, or none. The transfer ends with the end of file.
  virtual Result<std::optional<UniqueFd>> set_device_state_fd(TransferDirection /*direction*/,
                                                              UniqueFd /*channel*/) {
    return Errno{EOPNOTSUPP};
  }
  // Waits for the transfer to end and says how it went.
  virtual Result<> check_device_state() { return Errno{EOPNOTSUPP}; }

  // Sizes in bytes of the device's shared memory regions by their id, at most 256.
  virtual std::vector<std::uint64_t> shared_memory_sizes() const { return {}; }
};

}  // namespace virtiofsd::vhost_user
