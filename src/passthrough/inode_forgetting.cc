// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What the guest has forgotten: kept for a while without a descriptor, in line to go.
#include "passthrough/inode_state.h"

namespace virtiofsd {

bool InodeStore::State::is_worth_keeping(std::uint32_t slot) {
  const InodeRecord& record = at(slot);
  if (record.links.load(std::memory_order_relaxed) == InodeRecord::kNoLink) return false;
  const bool by_name = record.name.load(std::memory_order_relaxed) != 0 && record.birth != 0;
  return forgotten.capacity() != 0 && (by_name || has_handle(slot));
}

bool InodeStore::State::can_keep(std::uint32_t slot) {
  InodeRecord& record = at(slot);
  if (record.links.load(std::memory_order_relaxed) == InodeRecord::kNoLink) return false;
  const FdRef fd{record.fd.load(std::memory_order_acquire)};
  struct statx stx {};
  if (!sys::statx(fd, STATX_NLINK, &stx) || stx.stx_nlink == 0) return false;
  if (!has_handle(slot)) (void)remember_handle(slot, fd);
  if (!is_worth_keeping(slot)) return false;
  const bool young = !has_handle(slot) && !identity_of(record).lasts();
  if (young && !store_handle(slot, fd)) return false;
  record.unproven.store(young ? 1 : 0, std::memory_order_release);
  return true;
}

void InodeStore::State::forget(NodeId id, std::uint64_t count) {
  const std::uint32_t slot = slot_of(id);
  // Pinned so that its identity can be read; the root is never forgotten.
  if (slot == kRootSlot || !try_pin(id)) return;
  const Pinned pinned{*this, slot};  // a hot one cools down when the last pin is dropped
  InodeRecord& record = at(slot);
  const std::uint64_t hash = identity_of(record).hash();
  bool joins = false;
  {
    InodeIndex::Shard& of = index.shard(hash);
    Lock lock(of.mutex);
    const std::uint64_t owed = record.lookups.load(std::memory_order_relaxed);
    record.lookups.store(owed > count ? owed - count : 0, std::memory_order_relaxed);
    if (owed > count || inodes.state(slot) != SlotState::kLive) return;
    if (owed != 0) remembered.fetch_add(1, std::memory_order_relaxed);
    if (record.fd.load(std::memory_order_relaxed) >= 0) return;
    if (is_worth_keeping(slot)) {
      joins = join_queue(record);
    } else {
      leave(of, slot, hash, generation_of(id));
    }
  }
  if (joins) make_room(forgotten.push(id));
}

void InodeStore::State::cool_down(NodeId id) {
  const std::uint32_t slot = slot_of(id);
  const auto is_hot = [&] { return at(slot).fd.load(std::memory_order_relaxed) >= 0; };
  if (slot == kRootSlot) return;
  // Again if another thread used it just before ours turned out to be the last pin.
  while (is_hot() && try_pin(id)) {
    // Pinned, what is hot stays hot.
    const std::uint64_t hash = identity_of(at(slot)).hash();
    const bool was_hot = is_hot();
    const bool is_kept = was_hot && can_keep(slot);
    if (was_hot && !is_kept) drop(id, 0);
    // Not by unpin, which would come here again.
    if (inodes.unpin(slot)) return finish(slot);
    if (is_kept && close_forgotten(id, hash)) make_room(forgotten.push(id));
    if (was_hot) return;
  }
}

void InodeStore::State::leave(InodeIndex::Shard& of, std::uint32_t slot, std::uint64_t hash,
                              std::uint32_t generation) {
  remembered.fetch_sub(1, std::memory_order_relaxed);
  index.unlink(of, slot, hash);
  (void)inodes.retire(slot, generation);  // whoever unpins it last finishes it
}

bool InodeStore::State::join_queue(InodeRecord& record) {
  const bool in_queue = record.queued.load(std::memory_order_relaxed) != InodeRecord::kNotQueued;
  record.queued.store(in_queue ? InodeRecord::kQueuedAgain : InodeRecord::kQueued,
                      std::memory_order_relaxed);
  return !in_queue;
}

bool InodeStore::State::close_forgotten(NodeId id, std::uint64_t hash) {
  const std::uint32_t slot = slot_of(id);
  InodeRecord& record = at(slot);
  const NodeId parent{record.parent.load(std::memory_order_relaxed)};
  count_cold(parent, 1);
  UniqueFd closes;
  bool joins = false;
  {
    Lock lock(index.shard(hash).mutex);
    if (inodes.generation(slot) == generation_of(id) && inodes.set_aside(slot)) {
      if (inodes.generation(slot) == generation_of(id) &&
          record.lookups.load(std::memory_order_relaxed) == 0 &&
          record.parent.load(std::memory_order_relaxed) == parent.value) {
        closes = UniqueFd{record.fd.exchange(-1, std::memory_order_acq_rel)};
      }
      if (closes) {
        record.touched.store(0, std::memory_order_relaxed);
        joins = join_queue(record);
      }
      inodes.put_back(slot);
    }
  }
  if (closes) {
    hot.fetch_sub(1, std::memory_order_relaxed);
  } else {
    count_cold(parent, -1);
  }
  return joins;
}

void InodeStore::State::make_room(std::optional<NodeId> oldest) {
  while (oldest) {
    const NodeId id = *oldest;
    oldest.reset();
    if (drop_forgotten(id)) oldest = forgotten.push(id);
  }
}

bool InodeStore::State::drop_forgotten(NodeId id) {
  const std::uint32_t slot = slot_of(id);
  if (!try_pin(id)) return false;
  const Pinned pinned{*this, slot};
  InodeRecord& record = at(slot);
  const std::uint64_t hash = identity_of(record).hash();
  InodeIndex::Shard& of = index.shard(hash);
  Lock lock(of.mutex);
  const std::uint8_t queued =
      record.queued.exchange(InodeRecord::kNotQueued, std::memory_order_relaxed);
  if (record.lookups.load(std::memory_order_relaxed) != 0 || inodes.state(slot) != SlotState::kLive)
    return false;
  if (queued == InodeRecord::kQueuedAgain) return join_queue(record);
  leave(of, slot, hash, generation_of(id));
  return false;
}

bool InodeStore::State::drop_some_forgotten() {
  bool any = false;
  for (std::uint32_t i = 0; i < kDemotionBatch; ++i) {
    const auto oldest = forgotten.pop();
    if (!oldest) break;
    any = true;
    make_room(oldest);
  }
  return any;
}

void InodeStore::State::drop(NodeId id, std::uint64_t most_lookups) {
  const std::uint32_t slot = slot_of(id);
  if (slot == kRootSlot || !try_pin(id)) return;
  const Pinned pinned{*this, slot};
  InodeRecord& record = at(slot);
  const std::uint64_t hash = identity_of(record).hash();
  InodeIndex::Shard& of = index.shard(hash);
  Lock lock(of.mutex);
  const std::uint64_t owed = record.lookups.load(std::memory_order_relaxed);
  if (owed > most_lookups || inodes.state(slot) != SlotState::kLive) return;
  record.lookups.store(0, std::memory_order_relaxed);
  if (owed != 0) remembered.fetch_add(1, std::memory_order_relaxed);
  leave(of, slot, hash, generation_of(id));
}

}  // namespace virtiofsd
