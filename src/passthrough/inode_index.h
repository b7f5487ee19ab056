// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Finds the record of a file by its identity. Hash chains through the records
// themselves, in shards with a lock each. It holds slots, not records: whoever
// frees a slot unlinks it first.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/sync.h"
#include "passthrough/file_identity.h"
#include "state/records.h"
#include "state/slab.h"

namespace virtiofsd {

inline FileIdentity identity_of(const InodeRecord& record) {
  return {.ino = record.ino, .birth = record.birth, .mount = record.mount, .type = record.type};
}

class InodeIndex {
 public:
  struct Shard {
    Mutex mutex;
    std::vector<std::uint32_t> buckets GUARDED_BY(mutex) = std::vector<std::uint32_t>(16);
    std::uint32_t count GUARDED_BY(mutex) = 0;
  };

  // `inodes` outlives it.
  explicit InodeIndex(InodeSlab& inodes) : inodes_(inodes) {}

  // Where a file with this FileIdentity::hash() is or will be. Its lock is the
  // caller's to take, for what follows from being found must be done under it.
  Shard& shard(std::uint64_t hash) { return shards_[hash >> 58]; }

  // 0: not there.
  std::uint32_t find(Shard& in, const FileIdentity& identity, std::uint64_t hash)
      REQUIRES(in.mutex);
  // `slot` is in no index; its record's identity is set.
  void link(Shard& in, std::uint32_t slot, std::uint64_t hash) REQUIRES(in.mutex);
  // `slot` is in this one.
  void unlink(Shard& in, std::uint32_t slot, std::uint64_t hash) REQUIRES(in.mutex);

 private:
  static constexpr std::size_t kShards = 64;

  std::atomic<std::uint32_t>& next(std::uint32_t slot) { return inodes_.at(slot).next_by_identity; }
  void grow(Shard& in) REQUIRES(in.mutex);

  InodeSlab& inodes_;
  std::array<Shard, kShards> shards_;
};

}  // namespace virtiofsd
