// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What the VMM set up, written where it outlives the process: a SessionRecord
// and the descriptors it names, which are duplicates of its own. Written while
// a message is served, and a successor goes on only between two messages, so
// it never finds half of a change. Session thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "state/arena.h"
#include "state/records.h"
#include "sys/fd.h"
#include "vhost_user/backend.h"

namespace virtiofsd {

class DeviceJournal {
 public:
  // Without an arena nothing is written.
  explicit DeviceJournal(const Arena* arena);

  // Null without an arena.
  SessionRecord* record() { return record_; }
  // The bytes that Queue wants; empty without an arena.
  std::span<std::byte> ring_bytes(std::uint32_t index) const;
  // The settings of a ring, to change; of no consequence without an arena.
  SessionRecord::Ring& ring(std::uint32_t index) {
    return record_ != nullptr ? record_->ring[index] : nowhere_;
  }

  // Copies of the descriptions with duplicates of the files, to be given to set_regions or dropped.
  class Regions {
   public:
    Regions() = default;
    Regions(Regions&&) = default;
    Regions& operator=(Regions&&) = default;
    Result<> add(const vhost_user::MemoryRegion& region);

   private:
    friend class DeviceJournal;
    std::vector<std::pair<SessionRecord::Region, UniqueFd>> all_;
  };
  void set_regions(Regions regions);
  void add_regions(Regions regions);
  void remove_region(const vhost_user::MemoryRegion& region);

  // `place` names a duplicate of `fd` from now on (none: -1), and what it named before is closed.
  void keep(std::int32_t& place, FdRef fd);

  // Makes the record of a new arena one that says nothing.
  static void begin(const Arena& arena);
  // The descriptors that a record names; -1 may be among them.
  static std::vector<int> descriptors_kept_in(const Arena& arena);
  // As Passthrough::renumber_descriptors.
  static void renumber_descriptors(const Arena& arena, const std::function<int(int)>& number_of);

 private:
  SessionRecord* record_ = nullptr;
  std::span<std::byte> rings_;
  SessionRecord::Ring nowhere_{};
};

// The record of an arena by arena_plan.
SessionRecord& session_record(const Arena& arena);

}  // namespace virtiofsd
