// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What a process takes over from one that died: records that are all there, though their counters
// and what was derived from them are not.
#include <fcntl.h>
#include <sys/stat.h>

#include <vector>

#include "base/uninitialized.h"
#include "passthrough/inode_state.h"

namespace virtiofsd {

bool InodeStore::State::is_own_descriptor(const InodeRecord& record, FdRef fd) {
  struct statx stx {};
  // What is known here already identifies it; a server on the network may not answer now.
  return ::statx(fd.number(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, kMinimalMask, &stx) == 0 &&
         verify(record, stx);
}

void InodeStore::State::take_over() {
  const auto is_whole = [&](std::uint32_t slot) {
    return slot == kRootSlot || at(slot).mount <= mounts.count();
  };
  // The descriptors of what was half done are nobody's any more, and were closed as such.
  inodes.take_over(is_whole, [](std::uint32_t) {});

  const std::uint32_t used = inodes.used();
  for (std::uint32_t slot = kRootSlot; slot < used; ++slot) {
    if (inodes.state(slot) != SlotState::kLive) continue;
    InodeRecord& record = at(slot);
    record.opens.store(0, std::memory_order_relaxed);
    record.cold_children.store(0, std::memory_order_relaxed);
    record.queued.store(InodeRecord::kNotQueued, std::memory_order_relaxed);
    if (slot == kRootSlot) continue;
    const std::int32_t fd = record.fd.load(std::memory_order_relaxed);
    if (fd >= 0 && is_own_descriptor(record, FdRef{fd})) {
      hot.fetch_add(1, std::memory_order_relaxed);
    } else {
      record.fd.store(-1, std::memory_order_relaxed);
    }
    UNINITIALIZED KnownName known;
    if (!known_name(slot, known) || !known.name() || known.parent == id_of(slot)) {
      // The parent as well, or the name would be taken for known when it is seen again.
      record.name.store(0, std::memory_order_relaxed);
      record.parent.store(0, std::memory_order_relaxed);
    }
    if (record.lookups.load(std::memory_order_relaxed) == 0)
      remembered.fetch_add(1, std::memory_order_relaxed);
    const std::uint64_t hash = identity_of(record).hash();
    InodeIndex::Shard& of = index.shard(hash);
    Lock lock(of.mutex);
    index.link(of, slot, hash);
  }
  for (std::uint32_t slot = kRootSlot + 1; slot < used; ++slot) {
    if (inodes.state(slot) != SlotState::kLive) continue;
    if (at(slot).fd.load(std::memory_order_relaxed) >= 0) continue;
    const NodeId parent{at(slot).parent.load(std::memory_order_relaxed)};
    if (!try_pin(parent)) continue;
    at(slot_of(parent)).cold_children.fetch_add(1, std::memory_order_relaxed);
    // Not by unpin: a forgotten one would be let go before those who have it open have pinned it.
    (void)inodes.drop_pin(slot_of(parent));
  }
}

void InodeStore::State::put_forgotten_in_line() {
  const std::uint32_t used = inodes.used();
  // Of directories that are in each other, by names that are out of date, each would let the other
  // go first, for ever. So all are held until all are in line.
  std::vector<std::uint32_t> held;
  for (std::uint32_t slot = kRootSlot + 1; slot < used; ++slot) {
    if (inodes.state(slot) != SlotState::kLive) continue;
    if (at(slot).lookups.load(std::memory_order_relaxed) != 0) continue;
    const NodeId id = id_of(slot);
    if (at(slot).fd.load(std::memory_order_relaxed) < 0) {
      forget(id, 0);
    } else if (try_pin(id)) {
      held.push_back(slot);
    }
  }
  for (const std::uint32_t slot : held) unpin(slot);
}

}  // namespace virtiofsd
