// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What the lock table holds, as records in the arena, for the worker that comes
// after one that crashed: a record for each descriptor that carries locks, and
// one for each held range, which names the record of its descriptor.
//
// Always true, wherever the process ends: a descriptor that carries a lock has
// a record, and a record names an open descriptor; a range that is held and was
// answered for has a record. While ranges change, the records from before and
// after are there together for a moment, and they differ only where the request
// at work asked for it. The kernel may be a step ahead of the records.
//
// Threads: any; the records of one lock owner are changed by one at a time.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "state/arena.h"
#include "state/records.h"
#include "state/slab.h"
#include "sys/fd.h"

namespace virtiofsd {

struct LockRange {
  static constexpr std::uint64_t kEnd = std::numeric_limits<std::int64_t>::max();

  std::uint64_t start = 0;
  std::uint64_t end = 0;         // inclusive
  std::uint32_t type = F_UNLCK;  // or F_RDLCK, F_WRLCK
  std::uint32_t pid = 0;         // the guest's
  HandleId handle{};             // it was set through
  std::uint32_t record = 0;      // slot; 0: none says exactly this

  bool overlaps(const LockRange& other) const { return start <= other.end && other.start <= end; }
  bool excludes(const LockRange& other) const {
    return overlaps(other) && (type == F_WRLCK || other.type == F_WRLCK);
  }
  bool continued_by(const LockRange& next) const {
    return type == next.type && pid == next.pid && handle == next.handle && end != kEnd &&
           end + 1 == next.start;
  }
};

class LockRecords {
 public:
  // Without an arena it makes one, which nobody inherits.
  explicit LockRecords(std::shared_ptr<Arena> arena);
  LockRecords(const LockRecords&) = delete;
  LockRecords& operator=(const LockRecords&) = delete;

  // For an open descriptor, before it carries a lock. ENOLCK when there is no room.
  Result<std::uint32_t> add_descriptor(NodeId node, LockOwner owner, FdRef fd, int access);
  // Before it closes.
  void remove_descriptor(std::uint32_t record);

  // The way from one list of ranges to the next. Its room is taken when it is
  // made, so commit always goes; without commit all is as before.
  class Change {
   public:
    Change(Change&&) = default;
    Change& operator=(Change&&) = delete;
    ~Change();
    void commit();

   private:
    friend class LockRecords;
    explicit Change(LockRecords& records) : records_(records) {}
    LockRecords& records_;
    std::vector<std::uint32_t> added_;  // busy; published by commit
    std::vector<std::uint32_t> gone_;   // freed by commit, after that
  };

  // Gives those of `next` a record that have none. Both lists in the same
  // order, where both have a range. ENOLCK when there is no room.
  Result<Change> change(const std::vector<LockRange>& held, std::vector<LockRange>& next,
                        std::uint32_t descriptor);
  // The ranges are carried by another descriptor from now on.
  void move(const std::vector<LockRange>& ranges, std::uint32_t descriptor);
  void remove(const std::vector<LockRange>& ranges);

  // What an earlier life left of a descriptor.
  struct Found {
    std::uint32_t record;
    NodeId node;
    LockOwner owner;
    UniqueFd fd;
    int access;
    std::vector<LockRange> ranges;  // in any order; they may overlap
  };
  // First thing in a successor, in one thread. Nothing that the records say is
  // believed: what makes no sense is dropped, no descriptor is found twice, and
  // all are open files of the access that is said.
  std::vector<Found> take_over();

 private:
  std::uint64_t reference_to(std::uint32_t descriptor) const;
  bool is_reference(std::uint64_t reference) const;
  void free_range(std::uint32_t record);

  std::shared_ptr<Arena> arena_;
  LockOwnerSlab descriptors_;
  LockRangeSlab ranges_;
};

}  // namespace virtiofsd
