// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The driver's half of a virtqueue (virtio 1.2, 2.7 and 2.8), split or packed,
// with or without EVENT_IDX, indirect descriptors and IN_ORDER. What is put in
// comes back as a Used with the caller's own cookie; nothing is allocated
// after construction, so a benchmark pays for memory writes only.
//
// What the device writes is checked: an id that was never submitted or comes
// back twice, or a used index that runs ahead, turns the ring `broken()` with
// a sentence. One thread at a time. Memory belongs to the GuestRam, which must
// outlive the ring.
#pragma once

// The legacy layout helpers in there are C only.
#define VIRTIO_RING_NO_LEGACY
#include <linux/virtio_ring.h>
#undef VIRTIO_RING_NO_LEGACY

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sys/fd.h"
#include "testing/guest_ram.h"

namespace virtiofsd::guest {

using Deadline = std::chrono::steady_clock::time_point;
inline Deadline within(std::chrono::milliseconds time) {
  return std::chrono::steady_clock::now() + time;
}

struct Buffer {
  std::uint64_t guest = 0;
  std::uint32_t size = 0;
};

struct Used {
  // IN_ORDER: the device skipped this buffer's own entry, so its length is not known.
  static constexpr std::uint32_t kUnknownLength = 0xffff'ffff;
  std::uint32_t cookie = 0;
  std::uint32_t length = 0;  // bytes the device says it wrote
};

struct RingOptions {
  std::uint16_t size = 128;  // a power of two for a split ring
  bool packed = false;
  bool event_idx = false;
  bool indirect = false;
  bool in_order = false;
  std::uint16_t indirect_length = 272;  // descriptors in each indirect table
};

class DriverRing {
 public:
  // Ring areas come from region `table_region` of `ram`, indirect tables from its last.
  DriverRing(GuestRam& ram, const RingOptions& options, std::size_t table_region = 0);
  DriverRing(const DriverRing&) = delete;
  DriverRing& operator=(const DriverRing&) = delete;

  const RingOptions& options() const { return options_; }
  // Guest addresses of the three areas. Packed: descriptor ring, driver area, device area.
  std::uint64_t descriptor_area() const { return descriptors_.guest; }
  std::uint64_t driver_area() const { return driver_.guest; }
  std::uint64_t device_area() const { return device_.guest; }

  // What SET_VRING_BASE says for this ring when the device's used position is
  // all that is known of it: zero state for a fresh ring, and where a back-end
  // that lost everything starts again once every completion was taken.
  std::uint32_t base() const;

  // The kick eventfd (also what FrontEnd sends) and the descriptor that the
  // back-end's calls arrive at. A pipe's read end will do for the latter.
  void set_notifiers(FdRef kick, FdRef call);

  // Puts a chain in the ring without telling the device. False when it is
  // full. A chain of more than one buffer goes through an indirect table if
  // those are on.
  bool add(std::span<const Buffer> readable, std::span<const Buffer> writable,
           std::uint32_t cookie);
  // Tells the device of everything added since; kicks if it asked to be. True if it kicked.
  bool publish();
  bool submit(std::span<const Buffer> readable, std::span<const Buffer> writable,
              std::uint32_t cookie) {
    if (!add(readable, writable, cookie)) return false;
    publish();
    return true;
  }
  // Writes the kick eventfd whatever the device asked for.
  void kick();

  // A completion if there is one; never blocks.
  std::optional<Used> poll();
  // As above, but waits by the call descriptor. Nothing when `deadline` passes or the ring broke.
  std::optional<Used> wait(Deadline deadline);
  // As above, but spins on memory. Calls stay off.
  std::optional<Used> spin(Deadline deadline);
  // For a driver that sleeps in its own way, on several rings for one: asks
  // for a call. False when a completion is there already: poll, don't sleep.
  bool arm();
  // Awake again: no calls until the next arm().
  void disarm() { want_calls(false); }

  unsigned in_flight() const { return in_flight_; }
  bool broken() const { return !breakage_.empty(); }
  const std::string& breakage() const { return breakage_; }
  // How often the call descriptor was found signalled.
  std::uint64_t calls() const { return calls_; }

  // Forgets everything in flight and starts from zero, as a driver does that reset the device.
  void reset();

  // ---- for hostile tests: the memory itself, unguarded ----
  vring_desc* split_descriptors() const { return split_; }
  vring_packed_desc* packed_descriptors() const { return packed_; }
  std::atomic_ref<std::uint16_t> available_flags() const { return half(driver_, 0); }
  std::atomic_ref<std::uint16_t> available_index() const { return half(driver_, 1); }
  std::atomic_ref<std::uint16_t> available_entry(unsigned at) const {
    return half(driver_, 2 + at % options_.size);
  }
  std::atomic_ref<std::uint16_t> used_event() const { return half(driver_, 2 + options_.size); }
  std::atomic_ref<std::uint16_t> used_flags() const { return half(device_, 0); }
  std::atomic_ref<std::uint16_t> used_index() const { return half(device_, 1); }
  std::atomic_ref<std::uint16_t> available_event() const {
    return half(device_, 2 + options_.size * 4);
  }
  // Split: makes descriptor `head` available, nothing else. Follow with kick().
  void make_available(std::uint16_t head);
  // Packed: the AVAIL and USED bits that make a descriptor of this lap available.
  std::uint16_t packed_available_flags() const;
  // Packed: where the next descriptor goes.
  std::uint16_t position() const { return available_; }

 private:
  // One in the caller's hands: what must be freed when it comes back.
  struct Entry {
    std::uint32_t cookie = 0;
    std::uint16_t descriptors = 0;  // 0: not in flight
    bool writable = false;
  };

  static std::atomic_ref<std::uint16_t> half(const Block& block, unsigned index);
  void break_with(std::string why);
  bool add_split(std::span<const Buffer> readable, std::span<const Buffer> writable,
                 std::uint32_t cookie);
  bool add_packed(std::span<const Buffer> readable, std::span<const Buffer> writable,
                  std::uint32_t cookie);
  std::optional<Used> poll_split();
  std::optional<Used> poll_packed();
  std::optional<Used> finish(std::uint16_t id, std::uint32_t length);
  void want_calls(bool wanted);
  bool completion_waits() const;

  const RingOptions options_;
  Block descriptors_, driver_, device_, indirect_;
  vring_desc* split_ = nullptr;
  vring_packed_desc* packed_ = nullptr;
  vring_used_elem* used_ = nullptr;
  FdRef kick_, call_;

  std::vector<Entry> entries_;       // by id: split's head, packed's buffer id
  std::vector<std::uint16_t> free_;  // ids (packed) or descriptors (split) to give out
  std::vector<std::uint16_t> next_;  // split: our own copy of the links
  std::vector<std::uint16_t> fifo_;  // IN_ORDER: ids in submission order, a ring
  std::uint32_t fifo_head_ = 0, fifo_tail_ = 0;
  std::uint16_t free_descriptors_ = 0;  // both kinds
  std::uint16_t in_order_next_ = 0;     // split, IN_ORDER: the next descriptor in ring order
  unsigned in_flight_ = 0;

  std::uint16_t available_ = 0;  // split: free-running; packed: position
  std::uint16_t added_ = 0;      // since the last publish, in the same unit
  std::uint16_t used_seen_ = 0;
  bool available_wrap_ = true, used_wrap_ = true;
  std::uint16_t batch_left_ = 0;  // IN_ORDER: buffers still to hand out of a used batch
  std::uint32_t batch_length_ = 0;
  std::uint64_t calls_ = 0;
  std::string breakage_;
};

}  // namespace virtiofsd::guest
