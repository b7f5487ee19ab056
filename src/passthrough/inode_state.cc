// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Pins, identity, names and file handles of inode records.
#include <algorithm>
#include <cstring>
#include <string_view>

#include "passthrough/inode_state.h"

#include "base/uninitialized.h"
namespace virtiofsd {

std::uint32_t hash_name(std::string_view name) {
  std::uint64_t hash = name.size();
  while (!name.empty()) {
    std::uint64_t word = 0;
    const std::size_t n = name.size() < sizeof word ? name.size() : sizeof word;
    std::memcpy(&word, name.data(), n);
    hash = mix_bits(hash ^ word);
    name.remove_prefix(n);
  }
  return static_cast<std::uint32_t>(hash) | 1U;
}

void InodeStore::State::finish(std::uint32_t slot) {
  InodeRecord& record = at(slot);
  const std::int32_t number = record.fd.exchange(-1, std::memory_order_relaxed);
  if (number >= 0) {
    hot.fetch_sub(1, std::memory_order_relaxed);
    UniqueFd closes{number};
  } else {
    count_cold(NodeId{record.parent.load(std::memory_order_relaxed)}, -1);
  }
  blobs.remove(record.name.exchange(0, std::memory_order_relaxed));
  blobs.remove(record.handle.exchange(0, std::memory_order_relaxed));
  inodes.free(slot);
}

void InodeStore::State::count_cold(NodeId parent, int change) {
  if (parent.value == 0 || !try_pin(parent)) return;
  const std::uint32_t slot = slot_of(parent);
  at(slot).cold_children.fetch_add(static_cast<std::uint32_t>(change), std::memory_order_relaxed);
  unpin(slot);
}

std::optional<std::uint32_t> InodeStore::State::find(const FileIdentity& identity,
                                                     std::uint64_t lookups) {
  const std::uint64_t hash = identity.hash();
  for (;;) {
    NodeId doubtful;
    {
      InodeIndex::Shard& of = index.shard(hash);
      Lock lock(of.mutex);
      const std::uint32_t slot = index.find(of, identity, hash);
      if (slot == 0) return std::nullopt;
      if (!is_doubtful(slot)) {
        // Live while in the index: retiring takes this lock too.
        inodes.add_pin(slot);
        owe(at(slot), lookups);
        return slot;
      }
      doubtful = id_of(slot);
    }
    if (end_doubt(doubtful, lookups)) return slot_of(doubtful);
  }
}

bool InodeStore::State::end_doubt(NodeId id, std::uint64_t lookups) {
  if (!try_pin(id)) return false;
  const std::uint32_t slot = slot_of(id);
  if (path_fd(slot) && !is_doubtful(slot) && add_lookups(slot, lookups)) return true;
  drop(id, 0);
  unpin(slot);
  return false;
}

bool InodeStore::State::add_lookups(std::uint32_t slot, std::uint64_t lookups) {
  InodeRecord& record = at(slot);
  // A forget reads the count and writes it under this lock.
  Lock lock(index.shard(identity_of(record).hash()).mutex);
  if (inodes.state(slot) != SlotState::kLive) return false;
  owe(record, lookups);
  return true;
}

void InodeStore::State::fill(std::uint32_t slot, const FileIdentity& identity, bool submount,
                             UniqueFd fd) {
  InodeRecord& record = at(slot);
  record.ino = identity.ino;
  record.birth = identity.birth;
  record.mount = identity.mount;
  record.type = identity.type;
  record.submount = submount ? 1 : 0;
  record.lookups.store(0, std::memory_order_relaxed);
  record.parent.store(0, std::memory_order_relaxed);
  record.name.store(0, std::memory_order_relaxed);
  record.name_hash.store(0, std::memory_order_relaxed);
  record.handle.store(0, std::memory_order_relaxed);
  record.opens.store(0, std::memory_order_relaxed);
  record.cold_children.store(0, std::memory_order_relaxed);
  record.touched.store(fd ? 1 : 0, std::memory_order_relaxed);
  record.queued.store(InodeRecord::kNotQueued, std::memory_order_relaxed);
  record.unproven.store(0, std::memory_order_relaxed);
  record.links.store(InodeRecord::kManyLinks, std::memory_order_relaxed);
  if (fd) hot.fetch_add(1, std::memory_order_relaxed);
  record.fd.store(fd.release(), std::memory_order_relaxed);
}

Result<std::uint32_t> InodeStore::State::find_or_insert(const FileIdentity& identity, NodeId parent,
                                                        std::optional<Name> name, UniqueFd fd,
                                                        bool submount) {
  std::uint32_t reference = 0;
  if (name) {
    auto added = blobs.add(std::as_bytes(std::span{name->view()}));
    if (!added && drop_some_forgotten()) added = blobs.add(std::as_bytes(std::span{name->view()}));
    if (!added) return Errno{ENFILE};  // as many nodes as we remember
    reference = *added;
  }
  if (inodes.live() >= settings.max_inodes) drop_some_forgotten();
  const bool cold = !fd;
  if (cold) count_cold(parent, 1);

  const std::uint32_t hash_of_name = name ? hash_name(name->view()) : 0;
  const std::uint64_t hash = identity.hash();
  NodeId doubtful;
  const auto attempt = [&]() -> Result<std::uint32_t> {
    InodeIndex::Shard& of = index.shard(hash);
    Lock lock(of.mutex);
    const std::uint32_t known = index.find(of, identity, hash);
    if (known != 0 && is_doubtful(known)) {
      doubtful = id_of(known);
      return kMovedMeanwhile;
    }
    if (known != 0) {
      inodes.add_pin(known);
      owe(at(known), 1);
      return known;
    }
    if (inodes.live() >= settings.max_inodes) return Errno{ENFILE};
    const std::uint32_t slot = TRY(inodes.allocate());
    fill(slot, identity, submount, std::move(fd));
    InodeRecord& record = at(slot);
    record.lookups.store(1, std::memory_order_relaxed);
    record.parent.store(name ? parent.value : 0, std::memory_order_relaxed);
    record.name.store(std::exchange(reference, 0), std::memory_order_relaxed);
    record.name_hash.store(hash_of_name, std::memory_order_relaxed);
    index.link(of, slot, hash);
    inodes.publish(slot, 1);
    return slot;
  };
  Result<std::uint32_t> outcome = attempt();
  while (!outcome && outcome.error() == kMovedMeanwhile) {
    outcome = end_doubt(doubtful, 1) ? slot_of(doubtful) : attempt();
  }
  // A reference still ours was not used: somebody else's record was there first.
  const bool used = outcome && reference == 0 && name;
  if (used) names_seen.note(parent, hash_of_name, *outcome);
  if (reference != 0) blobs.remove(reference);
  if (cold && !used) count_cold(parent, -1);
  return outcome;
}

bool InodeStore::State::known_name(std::uint32_t slot, KnownName& out) {
  Lock lock(stripe(slot));
  const std::uint32_t reference = at(slot).name.load(std::memory_order_relaxed);
  if (reference == 0) return false;
  out.size = blobs.copy(reference, std::as_writable_bytes(std::span{out.text}));
  out.parent = NodeId{at(slot).parent.load(std::memory_order_relaxed)};
  return true;
}

void InodeStore::State::note_name(std::uint32_t slot, NodeId parent, Name name) {
  InodeRecord& record = at(slot);
  const std::uint32_t hash = hash_name(name.view());
  if (record.parent.load(std::memory_order_relaxed) == parent.value &&
      record.name_hash.load(std::memory_order_relaxed) == hash) {
    return;
  }
  if (slot == kRootSlot) return;
  auto added = blobs.add(std::as_bytes(std::span{name.view()}));
  if (!added) return;  // the old name stays: the worst that follows is ESTALE
  UNINITIALIZED KnownName earlier;
  if (known_name(slot, earlier))
    other_names.add(parent, name.view(), earlier.parent, {earlier.text.data(), earlier.size});
  count_cold(parent, 1);
  NodeId before;
  bool cold = false;
  std::uint32_t old = 0;
  {
    Lock lock(stripe(slot));
    // Who dies in between leaves a name that is noted again when it is seen.
    record.name_hash.store(0, std::memory_order_relaxed);
    old = record.name.exchange(*added, std::memory_order_release);
    before = NodeId{record.parent.exchange(parent.value, std::memory_order_relaxed)};
    record.name_hash.store(hash, std::memory_order_release);
    cold = record.fd.load(std::memory_order_relaxed) < 0;
  }
  // Two names, perhaps; nobody asked.
  record.links.store(InodeRecord::kManyLinks, std::memory_order_relaxed);
  blobs.remove(old);
  count_cold(cold ? before : parent, -1);
  names_seen.note(parent, hash, slot);
}

std::optional<std::uint32_t> InodeStore::State::find_by_name(NodeId parent, Name name) {
  const std::uint32_t hash = hash_name(name.view());
  const std::uint32_t slot = names_seen.slot(parent, hash);
  if (slot <= kRootSlot || !try_pin(id_of(slot))) return std::nullopt;
  UNINITIALIZED KnownName known;
  if (at(slot).name_hash.load(std::memory_order_relaxed) == hash && known_name(slot, known) &&
      known.parent == parent && std::string_view{known.text.data(), known.size} == name.view()) {
    return slot;
  }
  unpin(slot);
  return std::nullopt;
}

bool InodeStore::State::remember_handle(std::uint32_t slot, FdRef fd) {
  return settings.use_file_handles && at(slot).mount == 0 && store_handle(slot, fd);
}

bool InodeStore::State::store_handle(std::uint32_t slot, FdRef fd) {
  auto handle = sys::name_to_handle_at(fd);
  if (!handle) return false;
  auto reference = blobs.add(pack(*handle).view());
  if (!reference) return false;
  std::uint32_t none = 0;
  if (!at(slot).handle.compare_exchange_strong(none, *reference, std::memory_order_acq_rel)) {
    blobs.remove(*reference);
  }
  return true;
}

Result<> InodeStore::State::prove(std::uint32_t slot, FdRef fd) {
  InodeRecord& record = at(slot);
  if (record.unproven.load(std::memory_order_acquire) == 0) return {};
  const auto known = stored_handle(slot);
  const auto handle = sys::name_to_handle_at(fd);
  if (!known || !handle || known->type != handle->type || known->size != handle->size ||
      !std::equal(known->bytes.begin(), known->bytes.begin() + known->size,
                  handle->bytes.begin())) {
    return Errno{ESTALE};
  }
  record.unproven.store(0, std::memory_order_release);
  return {};
}

std::optional<sys::FileHandle> InodeStore::State::stored_handle(std::uint32_t slot) {
  // Once set, a handle stays as long as the record.
  const std::uint32_t reference = at(slot).handle.load(std::memory_order_acquire);
  if (reference == 0) return std::nullopt;
  UNINITIALIZED std::array<std::byte, Blobs::kMaxBytes + 1> packed;
  const std::size_t size = blobs.copy(reference, packed);
  return unpack(std::span{packed}.first(size));
}

PackedHandle pack(const sys::FileHandle& handle) {
  static_assert(sizeof(PackedHandle::bytes) <= Blobs::kMaxBytes);
  UNINITIALIZED PackedHandle packed;
  std::memcpy(packed.bytes.data(), &handle.type, sizeof handle.type);
  std::memcpy(packed.bytes.data() + sizeof handle.type, handle.bytes.data(), handle.size);
  packed.size = sizeof handle.type + handle.size;
  return packed;
}

// What a process left behind that failed may be anything, and so may what another host sends.
std::optional<sys::FileHandle> unpack(std::span<const std::byte> packed) {
  sys::FileHandle handle;
  if (packed.size() <= sizeof handle.type ||
      packed.size() - sizeof handle.type > handle.bytes.size()) {
    return std::nullopt;
  }
  std::memcpy(&handle.type, packed.data(), sizeof handle.type);
  handle.size = static_cast<std::uint32_t>(packed.size() - sizeof handle.type);
  std::memcpy(handle.bytes.data(), packed.data() + sizeof handle.type, handle.size);
  return handle;
}

}  // namespace virtiofsd
