// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/device_journal.h"

#include <utility>

#include "base/log.h"
#include "sys/files.h"

namespace virtiofsd {

SessionRecord& session_record(const Arena& arena) {
  return *static_cast<SessionRecord*>(
      static_cast<void*>(arena.section(SectionKind::kSession).data()));
}

DeviceJournal::DeviceJournal(const Arena* arena) {
  if (arena == nullptr) return;
  record_ = &session_record(*arena);
  rings_ = arena->section(SectionKind::kRings);
}

std::span<std::byte> DeviceJournal::ring_bytes(std::uint32_t index) const {
  if (rings_.empty()) return {};
  return rings_.subspan(std::size_t{index} * sizeof(RingRecord), sizeof(RingRecord));
}

Result<> DeviceJournal::Regions::add(const vhost_user::MemoryRegion& region) {
  UniqueFd file = TRY(sys::duplicate(region.file));
  all_.emplace_back(SessionRecord::Region{.guest = region.guest.value,
                                          .vmm = region.vmm.value,
                                          .size = region.size,
                                          .mmap_offset = region.mmap_offset,
                                          .fd = file.number(),
                                          .padding = 0},
                    std::move(file));
  return {};
}

void DeviceJournal::set_regions(Regions regions) {
  if (record_ == nullptr) return;
  const std::uint32_t before = std::exchange(record_->regions, 0);
  for (std::uint32_t i = 0; i < before; ++i) UniqueFd{record_->region[i].fd}.reset();
  record_->has_memory = 1;
  add_regions(std::move(regions));
}

void DeviceJournal::add_regions(Regions regions) {
  if (record_ == nullptr) return;
  record_->has_memory = 1;
  for (auto& [region, file] : regions.all_) {
    if (record_->regions == SessionRecord::kRegions) return;
    record_->region[record_->regions++] = region;
    (void)file.release();  // the record's from now on
  }
}

void DeviceJournal::remove_region(const vhost_user::MemoryRegion& region) {
  if (record_ == nullptr) return;
  for (std::uint32_t i = 0; i < record_->regions; ++i) {
    SessionRecord::Region& known = record_->region[i];
    if (known.guest != region.guest.value || known.vmm != region.vmm.value ||
        known.size != region.size) {
      continue;
    }
    UniqueFd{known.fd}.reset();
    known = record_->region[--record_->regions];
    return;
  }
}

void DeviceJournal::keep(std::int32_t& place, FdRef fd) {
  if (record_ == nullptr) return;
  Result<UniqueFd> copy = fd.valid() ? sys::duplicate(fd) : UniqueFd{};
  if (!copy) {
    log::warn(
        "no second number for a descriptor of the VMM's ({}); should the worker die, the next "
        "one would have to do without it",
        copy.error().text());
  }
  const UniqueFd before{std::exchange(place, copy ? copy->release() : -1)};
}

void DeviceJournal::begin(const Arena& arena) {
  SessionRecord& record = session_record(arena);
  record.socket = record.log_file = record.backend_requests = record.listening = -1;
  for (SessionRecord::Ring& ring : record.ring) ring.kick = ring.call = ring.error = -1;
}

namespace {

// Every place of the record that names a descriptor.
template <typename Record, typename Visit>
void for_each_descriptor(Record& record, Visit visit) {
  visit(record.socket);
  visit(record.log_file);
  visit(record.backend_requests);
  visit(record.listening);
  for (std::uint32_t i = 0; i < record.regions && i < SessionRecord::kRegions; ++i)
    visit(record.region[i].fd);
  for (auto& ring : record.ring) {
    visit(ring.kick);
    visit(ring.call);
    visit(ring.error);
  }
}

}  // namespace

std::vector<int> DeviceJournal::descriptors_kept_in(const Arena& arena) {
  std::vector<int> kept;
  for_each_descriptor(session_record(arena), [&](std::int32_t fd) { kept.push_back(fd); });
  return kept;
}

void DeviceJournal::renumber_descriptors(const Arena& arena,
                                         const std::function<int(int)>& number_of) {
  for_each_descriptor(session_record(arena), [&](std::int32_t& fd) {
    if (fd >= 0) fd = number_of(fd);
  });
}

}  // namespace virtiofsd
