// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The device's side of a split virtqueue (virtio 1.2, 2.7): pure ring logic on
// memory the driver writes at the same time. No lock and no descriptor of its
// own; its Queue sees to one caller at a time and to the memory staying mapped.
//
// Indices run free over 16 bits; a slot is an index modulo the ring size,
// which is a power of two of at most 32768.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "virtio/chain.h"

namespace virtiofsd::virtio {

struct SplitDescriptor {
  std::uint64_t address;
  std::uint32_t size;
  std::uint16_t flags;
  std::uint16_t next;
};
static_assert(sizeof(SplitDescriptor) == 16);

struct UsedElement {
  std::uint32_t id;
  std::uint32_t written;
};
static_assert(sizeof(UsedElement) == 8);

class SplitRing {
 public:
  // Where the three areas are mapped. `available` is flags, index, slots and
  // used_event; `used_head` is flags and index.
  struct Memory {
    SplitDescriptor* descriptors = nullptr;
    std::uint16_t* available = nullptr;
    std::uint16_t* used_head = nullptr;
    UsedElement* used = nullptr;
    std::uint16_t* available_event = nullptr;
  };

  // `next_available` is where taking goes on; where giving back goes on is
  // read from the ring itself, so the two may differ after a crash.
  SplitRing(Memory memory, std::uint32_t size, RingFeatures features, std::uint16_t next_available);

  // The same ring at other addresses of ours.
  void remap(Memory memory) { memory_ = memory; }

  // True: `chain` is the next one. False: the driver has made nothing more
  // available. EBADMSG: the ring is malformed; nothing was taken.
  Result<bool> pop(const GuestMemory& guest, ChainScratch& scratch, Chain& chain);

  // The chain with this head, which was taken before. EBADMSG as for pop.
  Result<> take_again(std::uint16_t head, const GuestMemory& guest, ChainScratch& scratch,
                      Chain& chain) const;

  // Gives a chain back; the driver sees it at the next publish.
  void put(std::uint16_t id, std::uint32_t written);
  void publish();

  // Whether the driver wants to hear about what was published since the last
  // call. `idle`: no chain is in flight.
  bool take_signal(bool idle);

  void suppress_kicks();
  // True when something is available already, so that no kick will come for it.
  bool enable_kicks();

  std::uint16_t next_available() const { return next_available_; }
  std::uint16_t next_used() const { return next_used_; }
  const std::uint16_t* available_index() const { return memory_.available + 1; }

 private:
  void prefetch(const GuestMemory& guest) const;
  Result<> walk(std::uint16_t head, ChainBuilder& builder) const;
  Result<> walk_table(const SplitDescriptor& descriptor, ChainBuilder& builder) const;
  std::uint16_t slot(std::uint16_t index) const {
    return static_cast<std::uint16_t>(index & (size_ - 1));
  }

  Memory memory_;
  std::uint32_t size_;
  RingFeatures features_;
  std::uint16_t next_available_;
  std::uint16_t seen_available_;  // the driver's index as last read
  std::uint16_t next_used_;
  std::uint32_t unsignalled_ = 0;  // published since the last take_signal
  bool first_signal_ = true;       // what a predecessor signalled is unknown
};

}  // namespace virtiofsd::virtio
