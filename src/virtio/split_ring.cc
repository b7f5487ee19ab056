// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/split_ring.h"

#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/prefetch.h"
#include "virtio/ring_word.h"

namespace virtiofsd::virtio {
namespace {

// Words of the available area: flags, index, then the slots.
constexpr std::size_t kAvailableFlags = 0;
constexpr std::size_t kAvailableIndex = 1;
constexpr std::size_t kAvailableSlots = 2;
constexpr std::size_t kUsedFlags = 0;
constexpr std::size_t kUsedIndex = 1;

constexpr std::uint16_t kNoInterrupt = 1;  // in the available flags
constexpr std::uint16_t kNoNotify = 1;     // in the used flags

SplitDescriptor copy_of(const SplitDescriptor& descriptor) {
  return {.address = load_relaxed(descriptor.address),
          .size = load_relaxed(descriptor.size),
          .flags = load_relaxed(descriptor.flags),
          .next = load_relaxed(descriptor.next)};
}

}  // namespace

SplitRing::SplitRing(Memory memory, std::uint32_t size, RingFeatures features,
                     std::uint16_t next_available)
    : memory_(memory),
      size_(size),
      features_(features),
      next_available_(next_available),
      seen_available_(next_available),
      next_used_(load_relaxed(memory.used_head[kUsedIndex])) {
  CHECK(std::has_single_bit(size) && size <= 32768);
}

Result<bool> SplitRing::pop(const GuestMemory& guest, ChainScratch& scratch, Chain& chain) {
  if (next_available_ == seen_available_) {
    // Pairs with the driver's release store: once we see the index we see the
    // slots and descriptors it published. (virtio 1.2, 2.7.13.3)
    const std::uint16_t published = load_acquire(memory_.available[kAvailableIndex]);
    if (published == next_available_) return false;
    // The driver can't have made more available than there are slots.
    if (static_cast<std::uint16_t>(published - next_available_) > size_) return Errno{EBADMSG};
    seen_available_ = published;
  }
  const std::uint16_t head =
      load_relaxed(memory_.available[kAvailableSlots + slot(next_available_)]);
  TRY(take_again(head, guest, scratch, chain));
  ++next_available_;
  chain.behind = static_cast<std::uint16_t>(seen_available_ - next_available_);
  prefetch(guest);
  return true;
}

Result<> SplitRing::take_again(std::uint16_t head, const GuestMemory& guest, ChainScratch& scratch,
                               Chain& chain) const {
  ChainBuilder builder(guest, scratch, size_);
  TRY(walk(head, builder));
  builder.finish(chain);
  chain.id = head;
  chain.descriptor_count = 1;
  return {};
}

// Of the chains behind: the next one's request, the table of the one after that, the descriptor of
// the third. What is read here leads nowhere but to a prefetch; it is read again, and checked, when
// its chain is taken.
void SplitRing::prefetch(const GuestMemory& guest) const {
  const auto ahead = static_cast<std::uint16_t>(seen_available_ - next_available_);
  const auto descriptor = [&](std::uint16_t chains) {
    const auto index = static_cast<std::uint16_t>(next_available_ + chains);
    const std::uint16_t head = load_relaxed(memory_.available[kAvailableSlots + slot(index)]);
    return &memory_.descriptors[head & (size_ - 1)];
  };
  constexpr std::uint64_t kTwo = 2 * sizeof(SplitDescriptor);
  if (ahead > 2) prefetch_for_read(descriptor(2));
  if (ahead > 1) {
    const SplitDescriptor next = copy_of(*descriptor(1));
    if (const void* at = guest.within_region(GuestAddress{next.address}, kTwo))
      prefetch_for_read(at);
  }
  if (ahead > 0) {
    SplitDescriptor next = copy_of(*descriptor(0));
    if ((next.flags & kIndirectTable) != 0) {
      const void* const table = guest.within_region(GuestAddress{next.address}, kTwo);
      if (table == nullptr) return;
      std::array<SplitDescriptor, 2> entries;
      std::memcpy(entries.data(), table, kTwo);  // it may lie anywhere, unaligned
      next.address = entries[0].address;
      if (const void* at = guest.within_region(GuestAddress{entries[1].address}, 1))
        prefetch_for_read(at);
    }
    if (const void* at = guest.within_region(GuestAddress{next.address}, 1)) prefetch_for_read(at);
  }
}

Result<> SplitRing::walk(std::uint16_t head, ChainBuilder& builder) const {
  std::uint16_t index = head;
  for (;;) {
    if (index >= size_) return Errno{EBADMSG};
    const SplitDescriptor descriptor = copy_of(memory_.descriptors[index]);
    if ((descriptor.flags & kIndirectTable) != 0) {
      // A table ends its chain; the driver must not say that more follows.
      // (virtio 1.2, 2.7.5.3.1)
      if (!features_.indirect || (descriptor.flags & kMoreFollows) != 0) return Errno{EBADMSG};
      return walk_table(descriptor, builder);
    }
    TRY(builder.add(GuestAddress{descriptor.address}, descriptor.size,
                    (descriptor.flags & kWriteOnly) != 0));
    if ((descriptor.flags & kMoreFollows) == 0) return {};
    index = descriptor.next;
  }
}

Result<> SplitRing::walk_table(const SplitDescriptor& descriptor, ChainBuilder& builder) const {
  const std::uint32_t entries =
      TRY(builder.open_table(GuestAddress{descriptor.address}, descriptor.size));
  if (entries == 0) return {};
  std::uint32_t index = 0;
  for (std::uint32_t visited = 0; visited < entries; ++visited) {
    if (index >= entries) return Errno{EBADMSG};
    const auto entry = builder.table_entry<SplitDescriptor>(index);
    // One level only. (virtio 1.2, 2.7.5.3.1)
    if ((entry.flags & kIndirectTable) != 0) return Errno{EBADMSG};
    TRY(builder.add(GuestAddress{entry.address}, entry.size, (entry.flags & kWriteOnly) != 0));
    if ((entry.flags & kMoreFollows) == 0) return {};
    index = entry.next;
  }
  return Errno{EBADMSG};  // more steps than entries: it loops
}

void SplitRing::put(std::uint16_t id, std::uint32_t written) {
  UsedElement& element = memory_.used[slot(next_used_)];
  store_relaxed(element.id, std::uint32_t{id});
  store_relaxed(element.written, written);
  ++next_used_;
  ++unsignalled_;
}

void SplitRing::publish() {
  // Release: the driver that sees the index sees the elements and everything
  // written into the buffers before. (virtio 1.2, 2.7.8)
  store_release(memory_.used_head[kUsedIndex], next_used_);
}

bool SplitRing::take_signal(bool idle) {
  const std::uint32_t published = std::exchange(unsignalled_, 0);
  if (published == 0) return false;
  // Our used index goes out before we look at what the driver wants; it writes
  // its wish before it looks at our index. (virtio 1.2, 2.7.7)
  full_fence();
  if (features_.notify_on_empty && idle &&
      load_relaxed(memory_.available[kAvailableIndex]) == next_available_) {
    return true;
  }
  if (!features_.event_index) {
    return (load_relaxed(memory_.available[kAvailableFlags]) & kNoInterrupt) == 0;
  }
  if (std::exchange(first_signal_, false)) return true;
  // The driver waits for the element at used_event: was it among those?
  const std::uint16_t event = load_relaxed(memory_.available[kAvailableSlots + size_]);
  const auto behind = static_cast<std::uint16_t>(next_used_ - event);
  return published > 0xffff || (behind != 0 && behind <= published);
}

void SplitRing::suppress_kicks() {
  if (features_.event_index) {
    // An event just behind us is one the driver has passed already: it kicks
    // next after a whole turn of the index. (virtio 1.2, 2.7.10)
    store_relaxed(*memory_.available_event, static_cast<std::uint16_t>(next_available_ - 1));
  } else {
    store_relaxed(memory_.used_head[kUsedFlags], kNoNotify);
  }
}

bool SplitRing::enable_kicks() {
  if (features_.event_index) {
    store_relaxed(*memory_.available_event, next_available_);
  } else {
    store_relaxed(memory_.used_head[kUsedFlags], std::uint16_t{0});
  }
  // Our wish goes out before we look again: either the driver sees it and
  // kicks, or we see what the driver added. (virtio 1.2, 2.7.10)
  full_fence();
  return load_acquire(memory_.available[kAvailableIndex]) != next_available_;
}

}  // namespace virtiofsd::virtio
