// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What is in the arena of a device: the sections and how many records each has room for. The file
// is sparse, so room costs nothing.
#pragma once

#include <array>
#include <cstdint>

#include "state/arena.h"
#include "state/blobs.h"
#include "state/records.h"

namespace virtiofsd {

inline constexpr std::uint32_t kMaxHandleRecords = 1U << 20;
inline constexpr std::uint32_t kMaxLockOwnerRecords = 1U << 20;
inline constexpr std::uint32_t kMaxLockRangeRecords = 1U << 16;
inline constexpr std::uint32_t kMaxMountRecords = 0xffff;

constexpr std::array<SectionPlan, 8> arena_plan(std::uint32_t max_inodes) {
  const std::uint64_t inodes = std::uint64_t{max_inodes} + 2;
  return {{
      {SectionKind::kSession, sizeof(SessionRecord), 1},
      {SectionKind::kRings, sizeof(RingRecord), SessionRecord::kRings},
      {SectionKind::kInodes, sizeof(InodeRecord), inodes},
      {SectionKind::kHandles, sizeof(HandleRecord), kMaxHandleRecords},
      // A name and, for some, a handle: two to three units each on average.
      {SectionKind::kBlobs, Blobs::kUnit, inodes * 4},
      {SectionKind::kLockOwners, sizeof(LockOwnerRecord), kMaxLockOwnerRecords},
      {SectionKind::kLockRanges, sizeof(LockRangeRecord), kMaxLockRangeRecords},
      {SectionKind::kMounts, sizeof(MountRecord), kMaxMountRecords},
  }};
}

}  // namespace virtiofsd
