// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The guest's memory as the VMM shared it. A table of regions, each known by
// three addresses: the guest's, the VMM's and ours. Immutable: regions are
// sorted by guest address, disjoint there, and no range wraps in any of the
// three spaces. A change of the table makes a new GuestMemory; whoever still
// holds the old one keeps its mappings. Any thread.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd {

struct MappedRegion {
  GuestAddress guest;
  VmmAddress vmm;
  std::uint64_t size = 0;             // bytes
  std::byte* host = nullptr;          // where the region's first byte is mapped
  std::shared_ptr<const void> owner;  // keeps `host` mapped
};

// Maps a region from the descriptor a vhost-user message brought. Errors as Mapping::map.
Result<MappedRegion> map_region(FdRef fd, std::uint64_t mmap_offset, GuestAddress guest,
                                VmmAddress vmm, std::uint64_t size);

class GuestMemory {
 public:
  // EINVAL: an empty region, one that wraps, or two that overlap for the guest.
  static Result<std::shared_ptr<const GuestMemory>> make(std::vector<MappedRegion> regions);

  // This table and one more region. Errors as make.
  Result<std::shared_ptr<const GuestMemory>> with_added(MappedRegion region) const;
  // This table without the region that has exactly these; ENOENT when there is none.
  Result<std::shared_ptr<const GuestMemory>> with_removed(GuestAddress guest, VmmAddress vmm,
                                                          std::uint64_t size) const;

  std::size_t region_count() const { return regions_.size(); }

  // Appends the pieces of our address space that are [start, start + size),
  // across regions that touch. EFAULT when part of it lies in no region
  // (`pieces` is as it was then). Size 0 appends nothing.
  Result<> append_pieces(GuestAddress start, std::uint64_t size, std::vector<iovec>& pieces) const;

  // One contiguous stretch of our address space, for rings: in one region, or
  // in several that follow each other in both address spaces. EINVAL when the
  // address isn't a multiple of `alignment` (for us too), EFAULT when it is nowhere.
  Result<void*> contiguous(VmmAddress start, std::uint64_t size, std::size_t alignment) const;
  Result<void*> contiguous(GuestAddress start, std::uint64_t size, std::size_t alignment) const;

  // As contiguous, for `count` objects of a type that any bytes are a value of.
  template <typename T, typename Address>
  Result<T*> array(Address start, std::uint64_t count, std::size_t alignment = alignof(T)) const {
    return static_cast<T*>(TRY(contiguous(start, count * sizeof(T), alignment)));
  }

  // Where [start, start + size) is in our address space, or null when it isn't within one region.
  const void* within_region(GuestAddress start, std::uint64_t size) const;

  // Where the guest sees what the VMM sees at `address`. EFAULT: nowhere.
  Result<GuestAddress> guest_address(VmmAddress address) const;
  Result<GuestAddress> guest_address(GuestAddress address) const { return address; }

 private:
  explicit GuestMemory(std::vector<MappedRegion> regions) : regions_(std::move(regions)) {}

  // The region `address` lies in, or null.
  const MappedRegion* find(GuestAddress address) const;
  const MappedRegion* find(VmmAddress address) const;
  template <typename Address>
  Result<void*> contiguous_in(Address start, std::uint64_t size, std::size_t alignment) const;

  const std::vector<MappedRegion> regions_;
};

}  // namespace virtiofsd
