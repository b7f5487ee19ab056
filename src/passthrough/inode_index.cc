// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/inode_index.h"

#include <atomic>
#include <utility>

#include "base/check.h"

namespace virtiofsd {
namespace {

std::uint32_t& bucket_of(std::vector<std::uint32_t>& buckets, std::uint64_t hash) {
  return buckets[hash & (buckets.size() - 1)];
}

}  // namespace

std::uint32_t InodeIndex::find(Shard& in, const FileIdentity& identity, std::uint64_t hash) {
  std::uint32_t slot = bucket_of(in.buckets, hash);
  while (slot != 0 && identity_of(inodes_.at(slot)) != identity)
    slot = next(slot).load(std::memory_order_relaxed);
  return slot;
}

void InodeIndex::link(Shard& in, std::uint32_t slot, std::uint64_t hash) {
  if (in.count >= in.buckets.size()) grow(in);
  std::uint32_t& bucket = bucket_of(in.buckets, hash);
  next(slot).store(bucket, std::memory_order_relaxed);
  bucket = slot;
  ++in.count;
}

void InodeIndex::grow(Shard& in) {
  std::vector<std::uint32_t> larger(in.buckets.size() * 2);
  for (std::uint32_t slot : in.buckets) {
    while (slot != 0) {
      const std::uint32_t after = next(slot).load(std::memory_order_relaxed);
      std::uint32_t& bucket = bucket_of(larger, identity_of(inodes_.at(slot)).hash());
      next(slot).store(bucket, std::memory_order_relaxed);
      bucket = slot;
      slot = after;
    }
  }
  in.buckets = std::move(larger);
}

void InodeIndex::unlink(Shard& in, std::uint32_t slot, std::uint64_t hash) {
  const std::uint32_t after = next(slot).load(std::memory_order_relaxed);
  --in.count;
  std::uint32_t& bucket = bucket_of(in.buckets, hash);
  if (bucket == slot) {
    bucket = after;
    return;
  }
  std::uint32_t before = bucket;
  for (;;) {
    CHECK(before != 0);
    const std::uint32_t here = next(before).load(std::memory_order_relaxed);
    if (here == slot) break;
    before = here;
  }
  next(before).store(after, std::memory_order_relaxed);
}

}  // namespace virtiofsd
