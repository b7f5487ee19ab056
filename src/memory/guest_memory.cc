// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/guest_memory.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "memory/mapping.h"

namespace virtiofsd {
namespace {

std::uint64_t start_of(const MappedRegion& region, GuestAddress) {
  return region.guest.value;
}
std::uint64_t start_of(const MappedRegion& region, VmmAddress) {
  return region.vmm.value;
}

bool wraps(std::uint64_t start, std::uint64_t size) {
  return start + (size - 1) < start;
}

}  // namespace

Result<MappedRegion> map_region(FdRef fd, std::uint64_t mmap_offset, GuestAddress guest,
                                VmmAddress vmm, std::uint64_t size) {
  auto mapping = TRY(Mapping::map(fd, mmap_offset, size));
  std::byte* const host = mapping->data();
  return MappedRegion{
      .guest = guest, .vmm = vmm, .size = size, .host = host, .owner = std::move(mapping)};
}

Result<std::shared_ptr<const GuestMemory>> GuestMemory::make(std::vector<MappedRegion> regions) {
  for (const MappedRegion& region : regions) {
    if (region.size == 0 || wraps(region.guest.value, region.size) ||
        wraps(region.vmm.value, region.size)) {
      return Errno{EINVAL};
    }
    CHECK(region.host != nullptr);
  }
  std::sort(regions.begin(), regions.end(),
            [](const MappedRegion& a, const MappedRegion& b) { return a.guest < b.guest; });
  for (std::size_t i = 1; i < regions.size(); ++i) {
    // Sorted, so the distance doesn't wrap.
    if (regions[i].guest.value - regions[i - 1].guest.value < regions[i - 1].size)
      return Errno{EINVAL};
  }
  return std::shared_ptr<const GuestMemory>(new GuestMemory(std::move(regions)));
}

Result<std::shared_ptr<const GuestMemory>> GuestMemory::with_added(MappedRegion region) const {
  std::vector<MappedRegion> regions = regions_;
  regions.push_back(std::move(region));
  return make(std::move(regions));
}

Result<std::shared_ptr<const GuestMemory>> GuestMemory::with_removed(GuestAddress guest,
                                                                     VmmAddress vmm,
                                                                     std::uint64_t size) const {
  std::vector<MappedRegion> regions = regions_;
  const auto removed = std::erase_if(regions, [&](const MappedRegion& region) {
    return region.guest == guest && region.vmm == vmm && region.size == size;
  });
  if (removed == 0) return Errno{ENOENT};
  return make(std::move(regions));
}

const MappedRegion* GuestMemory::find(GuestAddress address) const {
  // The last region that starts at or before `address`.
  const auto after = std::upper_bound(
      regions_.begin(), regions_.end(), address,
      [](GuestAddress wanted, const MappedRegion& region) { return wanted < region.guest; });
  if (after == regions_.begin()) return nullptr;
  const MappedRegion& region = *std::prev(after);
  return address.value - region.guest.value < region.size ? &region : nullptr;
}

const MappedRegion* GuestMemory::find(VmmAddress address) const {
  // Not sorted by VMM address; asked for only when a ring is set up.
  for (const MappedRegion& region : regions_) {
    if (address >= region.vmm && address.value - region.vmm.value < region.size) return &region;
  }
  return nullptr;
}

Result<> GuestMemory::append_pieces(GuestAddress start, std::uint64_t size,
                                    std::vector<iovec>& pieces) const {
  if (size == 0) return {};
  const MappedRegion* region = find(start);
  const MappedRegion* const end = regions_.data() + regions_.size();
  const std::size_t before = pieces.size();
  GuestAddress at = start;
  std::uint64_t left = size;
  while (region != nullptr && region != end && at >= region->guest) {
    const std::uint64_t offset = at.value - region->guest.value;
    // False when the next region doesn't begin where the last one ended, and
    // when `at` wrapped past 2^64 (then it is below every later region).
    if (offset >= region->size) break;
    const std::uint64_t part = std::min(left, region->size - offset);
    pieces.push_back({.iov_base = region->host + offset, .iov_len = part});
    left -= part;
    if (left == 0) return {};
    at.value += part;
    ++region;
  }
  pieces.resize(before);
  return Errno{EFAULT};
}

const void* GuestMemory::within_region(GuestAddress start, std::uint64_t size) const {
  const MappedRegion* const region = find(start);
  if (region == nullptr) return nullptr;
  const std::uint64_t offset = start.value - region->guest.value;
  return size <= region->size - offset ? region->host + offset : nullptr;
}

template <typename Address>
Result<void*> GuestMemory::contiguous_in(Address start, std::uint64_t size,
                                         std::size_t alignment) const {
  if (size == 0 || wraps(start.value, size)) return Errno{EFAULT};
  if (start.value % alignment != 0) return Errno{EINVAL};
  const MappedRegion* const first = find(start);
  if (first == nullptr) return Errno{EFAULT};
  const std::uint64_t offset = start.value - start_of(*first, start);
  std::byte* const host = first->host + offset;
  if (std::bit_cast<std::uintptr_t>(host) % alignment != 0) return Errno{EINVAL};

  std::uint64_t covered = first->size - offset;
  while (covered < size) {
    const MappedRegion* const next = find(Address{start.value + covered});
    if (next == nullptr || start_of(*next, start) != start.value + covered ||
        next->host != host + covered) {
      return Errno{EFAULT};
    }
    covered += next->size;
  }
  return static_cast<void*>(host);
}

Result<void*> GuestMemory::contiguous(VmmAddress start, std::uint64_t size,
                                      std::size_t alignment) const {
  return contiguous_in(start, size, alignment);
}

Result<void*> GuestMemory::contiguous(GuestAddress start, std::uint64_t size,
                                      std::size_t alignment) const {
  return contiguous_in(start, size, alignment);
}

Result<GuestAddress> GuestMemory::guest_address(VmmAddress address) const {
  const MappedRegion* const region = find(address);
  if (region == nullptr) return Errno{EFAULT};
  return GuestAddress{region->guest.value + (address.value - region->vmm.value)};
}

}  // namespace virtiofsd
