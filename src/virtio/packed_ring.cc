// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/packed_ring.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "virtio/ring_word.h"

namespace virtiofsd::virtio {
namespace {

constexpr std::uint16_t kAvailableFlag = 1U << 7;
constexpr std::uint16_t kUsedFlag = 1U << 15;

// Event suppression flags. (virtio 1.2, 2.8.14)
constexpr std::uint16_t kEventEnable = 0;
constexpr std::uint16_t kEventDisable = 1;
constexpr std::uint16_t kEventAtSlot = 2;

}  // namespace

PackedRing::PackedRing(Memory memory, std::uint32_t size, RingFeatures features,
                       PackedPosition available, PackedPosition used, std::uint32_t in_flight_slots)
    : memory_(memory),
      size_(size),
      features_(features),
      available_(available),
      used_(used),
      in_flight_slots_(in_flight_slots) {
  CHECK(size >= 1 && size <= 32768 && available.slot < size && used.slot < size &&
        in_flight_slots <= size);
}

bool PackedRing::is_available(std::uint16_t flags, bool wrap) {
  // virtio 1.2, 2.8.1: available when AVAIL equals our counter and USED doesn't.
  return ((flags & kAvailableFlag) != 0) == wrap && ((flags & kUsedFlag) != 0) != wrap;
}

bool PackedRing::is_marked_used(std::uint16_t flags) {
  return (flags & kUsedFlag) != 0;
}

bool PackedRing::is_given(const Memory& memory, PackedPosition at) {
  return is_marked_used(load_acquire(memory.descriptors[at.slot].flags)) == at.wrap;
}

Result<bool> PackedRing::pop(const GuestMemory& guest, ChainScratch& scratch, Chain& chain) {
  // Pairs with the driver's release store of the head's flags, the last thing
  // it writes of a chain: what follows is all there. (virtio 1.2, 2.8.21)
  std::uint16_t flags = load_acquire(memory_.descriptors[available_.slot].flags);
  if (!is_available(flags, available_.wrap)) return false;

  ChainBuilder builder(guest, scratch, size_);
  std::uint32_t slot = available_.slot;
  std::uint32_t count = 0;
  for (;;) {
    // More slots than the ring has, or slots whose chains we still hold.
    if (++count > size_ - in_flight_slots_) return Errno{EBADMSG};
    const PackedDescriptor& shared = memory_.descriptors[slot];
    const PackedDescriptor descriptor{.address = load_relaxed(shared.address),
                                      .size = load_relaxed(shared.size),
                                      .id = load_relaxed(shared.id),
                                      .flags = flags};
    TRY(add(descriptor, builder));
    if ((flags & kMoreFollows) == 0) {
      chain.id = descriptor.id;  // only the last one's counts (virtio 1.2, 2.8.6)
      break;
    }
    slot = slot + 1 == size_ ? 0 : slot + 1;
    flags = load_relaxed(memory_.descriptors[slot].flags);
  }
  builder.finish(chain);
  chain.descriptor_count = static_cast<std::uint16_t>(count);
  available_.advance(count, size_);
  in_flight_slots_ += count;
  chain.behind = behind();
  return true;
}

Result<> PackedRing::add(const PackedDescriptor& descriptor, ChainBuilder& builder) const {
  if ((descriptor.flags & kIndirectTable) == 0) {
    return builder.add(GuestAddress{descriptor.address}, descriptor.size,
                       (descriptor.flags & kWriteOnly) != 0);
  }
  // A table ends its chain. (virtio 1.2, 2.8.19)
  if (!features_.indirect || (descriptor.flags & kMoreFollows) != 0) return Errno{EBADMSG};
  return walk_table(descriptor, builder);
}

Result<> PackedRing::take_again(std::span<const PackedDescriptor> descriptors,
                                const GuestMemory& guest, ChainScratch& scratch,
                                Chain& chain) const {
  ChainBuilder builder(guest, scratch, size_);
  for (const PackedDescriptor& descriptor : descriptors) TRY(add(descriptor, builder));
  builder.finish(chain);
  chain.id = descriptors.back().id;
  chain.descriptor_count = static_cast<std::uint16_t>(descriptors.size());
  return {};
}

// Nothing counts chains, and looking at each slot would cost. So two looks tell
// whether there are many or some, if each takes a slot, as with indirect tables.
std::uint32_t PackedRing::behind() const {
  for (const std::uint32_t distance : {32U, 8U}) {
    if (size_ < distance) continue;
    PackedPosition last = available_;
    last.advance(distance - 1, size_);
    if (is_available(load_relaxed(memory_.descriptors[last.slot].flags), last.wrap))
      return distance;
  }
  return 0;
}

Result<> PackedRing::walk_table(const PackedDescriptor& descriptor, ChainBuilder& builder) const {
  const std::uint32_t entries =
      TRY(builder.open_table(GuestAddress{descriptor.address}, descriptor.size));
  // All entries in their order; only the write flag means anything in them.
  // (virtio 1.2, 2.8.7)
  for (std::uint32_t index = 0; index < entries; ++index) {
    const auto entry = builder.table_entry<PackedDescriptor>(index);
    if ((entry.flags & kIndirectTable) != 0) return Errno{EBADMSG};
    TRY(builder.add(GuestAddress{entry.address}, entry.size, (entry.flags & kWriteOnly) != 0));
  }
  return {};
}

void PackedRing::put(std::uint16_t id, std::uint16_t descriptor_count, std::uint32_t written) {
  CHECK(descriptor_count >= 1 && descriptor_count <= in_flight_slots_);
  PackedDescriptor& shared = memory_.descriptors[used_.slot];
  store_relaxed(shared.id, id);
  store_relaxed(shared.size, written);
  // Used: both bits equal the counter. WRITE says that the length counts.
  std::uint16_t flags = written != 0 ? kWriteOnly : std::uint16_t{0};
  if (used_.wrap) flags |= kAvailableFlag | kUsedFlag;
  // Release: the driver that sees the flags sees the rest of the descriptor
  // and everything written into the buffers before. (virtio 1.2, 2.8.22)
  store_release(shared.flags, flags);
  used_.advance(descriptor_count, size_);
  in_flight_slots_ -= descriptor_count;
  unsignalled_ += descriptor_count;
}

bool PackedRing::take_signal(bool idle) {
  const std::uint32_t given = std::exchange(unsignalled_, 0);
  if (given == 0) return false;
  // Our used flags go out before we look at what the driver wants; it writes
  // its wish before it looks at our flags. (virtio 1.2, 2.8.10)
  full_fence();
  if (features_.notify_on_empty && idle &&
      !is_available(load_relaxed(memory_.descriptors[available_.slot].flags), available_.wrap)) {
    return true;
  }
  const std::uint16_t wish = load_acquire(memory_.driver_event->flags) & 0x3;
  if (wish == kEventDisable) return false;
  if (wish != kEventAtSlot || !features_.event_index) return true;
  if (std::exchange(first_signal_, false)) return true;
  // The driver waits until the slot at `event` is passed. Count both on one
  // circle of two turns: first the turn with the counter set, then the other.
  const auto on_circle = [this](PackedPosition position) {
    return std::uint32_t{position.slot} + (position.wrap ? 0 : size_);
  };
  const auto event = PackedPosition::decode(load_relaxed(memory_.driver_event->position));
  if (event.slot >= size_) return true;  // means nothing: better one signal too many
  const std::uint32_t circle = 2 * size_;
  const std::uint32_t behind = (on_circle(used_) + circle - on_circle(event)) % circle;
  return given >= circle || (behind != 0 && behind <= given);
}

void PackedRing::suppress_kicks() {
  store_relaxed(memory_.device_event->flags, kEventDisable);
}

bool PackedRing::enable_kicks() {
  if (features_.event_index) {
    store_relaxed(memory_.device_event->position, available_.encode());
    store_release(memory_.device_event->flags, kEventAtSlot);
  } else {
    store_release(memory_.device_event->flags, kEventEnable);
  }
  // Our wish goes out before we look again: either the driver sees it and
  // kicks, or we see what the driver added. (virtio 1.2, 2.8.10)
  full_fence();
  return is_available(load_acquire(memory_.descriptors[available_.slot].flags), available_.wrap);
}

}  // namespace virtiofsd::virtio
