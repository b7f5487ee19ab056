// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The memory of a guest that isn't there: regions of one sealed-size memfd,
// each at a guest address and a VMM address of the test's choosing. Nothing
// here equals anything else by luck: a back-end that takes one kind of address
// for the other misses.
//
// Allocation is a bump pointer per region and nothing is ever freed; a test's
// memory ends with it. Not thread-safe while allocating.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd::guest {

struct RegionSpec {
  std::uint64_t guest = 0;
  std::uint64_t vmm = 0;
  std::uint64_t size = 0;
};

// A stretch of guest memory: where the guest sees it and where this process does.
struct Block {
  std::uint64_t guest = 0;
  std::byte* host = nullptr;
  std::size_t size = 0;
};

class GuestRam {
 public:
  struct Region {
    std::uint64_t guest;
    std::uint64_t vmm;
    std::uint64_t size;
    std::uint64_t offset;  // in fd()
    std::byte* host;
    std::uint64_t used;  // bytes given out
  };

  // Two regions as QEMU lays out a PC with a hole under 4 GiB.
  static std::vector<RegionSpec> two_regions(std::uint64_t low, std::uint64_t high);
  // One region whose VMM address equals its guest address, as user-mode Linux has it.
  static std::vector<RegionSpec> one_region(std::uint64_t size);

  static Result<GuestRam> make(std::span<const RegionSpec> regions);
  GuestRam(GuestRam&& other) noexcept;
  GuestRam& operator=(GuestRam&&) = delete;
  GuestRam(const GuestRam&) = delete;
  GuestRam& operator=(const GuestRam&) = delete;
  ~GuestRam();

  FdRef fd() const { return fd_; }
  const std::vector<Region>& regions() const { return regions_; }

  // Zeroed, aligned. No room is the test's own mistake and ends the process.
  Block allocate(std::size_t size, std::size_t alignment, std::size_t region);
  // In the last region, where buffers live.
  Block allocate(std::size_t size, std::size_t alignment = 64) {
    return allocate(size, alignment, regions_.size() - 1);
  }

  // Where `size` bytes at a guest address are in this process; null when they
  // are not all in one region.
  std::byte* at(std::uint64_t guest, std::size_t size) const;
  // The VMM address of a guest address; 0 when it is in no region.
  std::uint64_t vmm_of(std::uint64_t guest) const;

 private:
  GuestRam() = default;

  UniqueFd fd_;
  std::vector<Region> regions_;
};

}  // namespace virtiofsd::guest
