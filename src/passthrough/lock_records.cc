// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/lock_records.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <unordered_map>
#include <unordered_set>

#include "base/check.h"
#include "state/plan.h"

namespace virtiofsd {
namespace {

std::shared_ptr<Arena> own_arena() {
  constexpr std::array<SectionPlan, 2> kPlan = {{
      {SectionKind::kLockOwners, sizeof(LockOwnerRecord), kMaxLockOwnerRecords},
      {SectionKind::kLockRanges, sizeof(LockRangeRecord), kMaxLockRangeRecords},
  }};
  auto arena = Arena::create(kPlan);
  CHECK(arena.has_value());
  return std::move(*arena);
}

// No proof that it is the file: the number may lead to any that is open.
bool is_open(const LockOwnerRecord& record) {
  const int flags = ::fcntl(record.fd, F_GETFL);
  if (flags < 0 || (flags & O_PATH) != 0 || (flags & O_ACCMODE) != record.access) return false;
  struct stat attributes {};
  return ::fstat(record.fd, &attributes) == 0 && S_ISREG(attributes.st_mode);
}

bool makes_sense(const LockRangeRecord& record) {
  return (record.type == F_RDLCK || record.type == F_WRLCK) && record.start <= record.end &&
         record.end <= LockRange::kEnd;
}

}  // namespace

LockRecords::LockRecords(std::shared_ptr<Arena> arena)
    : arena_(arena ? std::move(arena) : own_arena()),
      descriptors_(arena_->section(SectionKind::kLockOwners)),
      ranges_(arena_->section(SectionKind::kLockRanges)) {}

Result<std::uint32_t> LockRecords::add_descriptor(NodeId node, LockOwner owner, FdRef fd,
                                                  int access) {
  const auto slot = descriptors_.allocate();
  if (!slot) return Errno{ENOLCK};
  LockOwnerRecord& record = descriptors_.at(*slot);
  record.node = node.value;
  record.owner = owner.value;
  record.fd = fd.number();
  record.access = access;
  descriptors_.publish(*slot, 0);
  return *slot;
}

void LockRecords::remove_descriptor(std::uint32_t record) {
  if (descriptors_.retire(record, descriptors_.generation(record))) descriptors_.free(record);
}

LockRecords::Change::~Change() {
  for (const std::uint32_t slot : added_) records_.ranges_.free(slot);
}

void LockRecords::Change::commit() {
  for (const std::uint32_t slot : added_) records_.ranges_.publish(slot, 0);
  for (const std::uint32_t slot : gone_) records_.free_range(slot);
  added_.clear();
  gone_.clear();
}

Result<LockRecords::Change> LockRecords::change(const std::vector<LockRange>& held,
                                                std::vector<LockRange>& next,
                                                std::uint32_t descriptor) {
  Change change{*this};
  auto kept = next.begin();
  for (const LockRange& range : held) {
    while (kept != next.end() && kept->record == 0) ++kept;
    if (kept != next.end() && kept->record == range.record) {
      ++kept;
    } else {
      change.gone_.push_back(range.record);
    }
  }
  for (LockRange& range : next) {
    if (range.record != 0) continue;
    const auto slot = ranges_.allocate();
    if (!slot) return Errno{ENOLCK};
    change.added_.push_back(*slot);
    LockRangeRecord& record = ranges_.at(*slot);
    record.owner = reference_to(descriptor);
    record.start = range.start;
    record.end = range.end;
    record.handle = range.handle.value;
    record.type = range.type;
    record.pid = range.pid;
    range.record = *slot;
  }
  return change;
}

void LockRecords::move(const std::vector<LockRange>& ranges, std::uint32_t descriptor) {
  const std::uint64_t reference = reference_to(descriptor);
  for (const LockRange& range : ranges) {
    // In one piece: the record is live.
    std::atomic_ref{ranges_.at(range.record).owner}.store(reference, std::memory_order_release);
  }
}

void LockRecords::remove(const std::vector<LockRange>& ranges) {
  for (const LockRange& range : ranges) free_range(range.record);
}

void LockRecords::free_range(std::uint32_t record) {
  if (ranges_.retire(record, ranges_.generation(record))) ranges_.free(record);
}

std::uint64_t LockRecords::reference_to(std::uint32_t descriptor) const {
  return (std::uint64_t{descriptors_.generation(descriptor)} << 32) | descriptor;
}

bool LockRecords::is_reference(std::uint64_t reference) const {
  const auto slot = static_cast<std::uint32_t>(reference);
  return slot != 0 && slot < descriptors_.used() && descriptors_.state(slot) == SlotState::kLive &&
         reference_to(slot) == reference;
}

std::vector<LockRecords::Found> LockRecords::take_over() {
  std::unordered_set<std::int32_t> numbers;
  descriptors_.take_over(
      [&](std::uint32_t slot) {
        const LockOwnerRecord& record = descriptors_.at(slot);
        return is_open(record) && numbers.insert(record.fd).second;
      },
      [](std::uint32_t) {});
  ranges_.take_over(
      [&](std::uint32_t slot) {
        const LockRangeRecord& record = ranges_.at(slot);
        return makes_sense(record) && is_reference(record.owner);
      },
      [](std::uint32_t) {});

  std::vector<Found> all;
  std::unordered_map<std::uint64_t, std::size_t> places;  // by reference
  for (std::uint32_t slot = 1; slot < descriptors_.used(); ++slot) {
    if (descriptors_.state(slot) != SlotState::kLive) continue;
    const LockOwnerRecord& record = descriptors_.at(slot);
    places.emplace(reference_to(slot), all.size());
    all.push_back({.record = slot,
                   .node = NodeId{record.node},
                   .owner = LockOwner{record.owner},
                   .fd = UniqueFd{record.fd},
                   .access = record.access,
                   .ranges = {}});
  }
  for (std::uint32_t slot = 1; slot < ranges_.used(); ++slot) {
    if (ranges_.state(slot) != SlotState::kLive) continue;
    const LockRangeRecord& record = ranges_.at(slot);
    const auto place = places.find(record.owner);
    CHECK(place != places.end());
    all[place->second].ranges.push_back({.start = record.start,
                                         .end = record.end,
                                         .type = record.type,
                                         .pid = record.pid,
                                         .handle = HandleId{record.handle},
                                         .record = slot});
  }
  return all;
}

}  // namespace virtiofsd
