// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The device's side of a packed virtqueue (virtio 1.2, 2.8): pure ring logic
// on memory the driver writes at the same time. No lock and no descriptor of
// its own; its Queue sees to one caller at a time and to the memory staying mapped.
//
// A position is a slot below the ring size (1 to 32768, any number) and a wrap
// counter that flips at each turn. Giving back never overtakes taking: the
// Queue's chains in flight never hold more slots than the ring has.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "virtio/chain.h"

namespace virtiofsd::virtio {

struct PackedDescriptor {
  std::uint64_t address;
  std::uint32_t size;
  std::uint16_t id;
  std::uint16_t flags;
};
static_assert(sizeof(PackedDescriptor) == 16);

struct EventSuppression {
  std::uint16_t position;  // slot and wrap counter: PackedPosition::encode
  std::uint16_t flags;
};
static_assert(sizeof(EventSuppression) == 4);

struct PackedPosition {
  std::uint16_t slot = 0;
  bool wrap = true;

  // Bits 0-14 the slot, bit 15 the counter: in event suppression and, twice,
  // in the vhost-user ring base.
  std::uint16_t encode() const { return static_cast<std::uint16_t>(slot | (wrap ? 0x8000U : 0U)); }
  static PackedPosition decode(std::uint16_t bits) {
    return {.slot = static_cast<std::uint16_t>(bits & 0x7fff), .wrap = (bits & 0x8000) != 0};
  }
  void advance(std::uint32_t count, std::uint32_t size) {
    std::uint32_t next = slot + count;
    if (next >= size) {
      next -= size;
      wrap = !wrap;
    }
    slot = static_cast<std::uint16_t>(next);
  }
  friend bool operator==(PackedPosition, PackedPosition) = default;
};

class PackedRing {
 public:
  struct Memory {
    PackedDescriptor* descriptors = nullptr;
    EventSuppression* driver_event = nullptr;  // what the driver wants to hear
    EventSuppression* device_event = nullptr;  // what we want to hear
  };

  // Both slots are below `size`; so many slots are in flight from before.
  PackedRing(Memory memory, std::uint32_t size, RingFeatures features, PackedPosition available,
             PackedPosition used, std::uint32_t in_flight_slots = 0);

  // The same ring at other addresses of ours.
  void remap(Memory memory) { memory_ = memory; }

  // True: `chain` is the next one. False: the driver has made nothing more
  // available. EBADMSG: the ring is malformed; nothing was taken.
  Result<bool> pop(const GuestMemory& guest, ChainScratch& scratch, Chain& chain);

  // The chain of these descriptors, which were taken before. EBADMSG as for pop.
  Result<> take_again(std::span<const PackedDescriptor> descriptors, const GuestMemory& guest,
                      ChainScratch& scratch, Chain& chain) const;

  // Gives a chain back that took `descriptor_count` slots. The driver sees it at once.
  void put(std::uint16_t id, std::uint16_t descriptor_count, std::uint32_t written);

  // Whether the driver wants to hear about what was put since the last call.
  // `idle`: no chain is in flight.
  bool take_signal(bool idle);

  void suppress_kicks();
  // True when something is available already, so that no kick will come for it.
  bool enable_kicks();

  PackedPosition next_available() const { return available_; }
  PackedPosition next_used() const { return used_; }
  const PackedDescriptor* descriptors() const { return memory_.descriptors; }

  // Whether flags say "available" to a device whose wrap counter is `wrap`.
  static bool is_available(std::uint16_t flags, bool wrap);
  // Whether USED is set: never in a new ring, nor by a driver in its first round.
  static bool is_marked_used(std::uint16_t flags);
  // Whether what was taken at the used position `at` was given back: the driver had left USED
  // there as the counter isn't.
  static bool is_given(const Memory& memory, PackedPosition at);

 private:
  std::uint32_t behind() const;
  Result<> add(const PackedDescriptor& descriptor, ChainBuilder& builder) const;
  Result<> walk_table(const PackedDescriptor& descriptor, ChainBuilder& builder) const;

  Memory memory_;
  std::uint32_t size_;
  RingFeatures features_;
  PackedPosition available_;
  PackedPosition used_;
  std::uint32_t in_flight_slots_;
  std::uint32_t unsignalled_ = 0;  // slots given back since the last take_signal
  bool first_signal_ = true;       // what a predecessor signalled is unknown
};

}  // namespace virtiofsd::virtio
