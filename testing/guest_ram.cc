// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "testing/guest_ram.h"

#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "base/check.h"

namespace virtiofsd::guest {

std::vector<RegionSpec> GuestRam::two_regions(std::uint64_t low, std::uint64_t high) {
  return {{.guest = 0, .vmm = 0x7d00'0000'0000, .size = low},
          {.guest = 0x1'0000'0000, .vmm = 0x7e00'4000'0000, .size = high}};
}

std::vector<RegionSpec> GuestRam::one_region(std::uint64_t size) {
  return {{.guest = 0x6000'0000, .vmm = 0x6000'0000, .size = size}};
}

Result<GuestRam> GuestRam::make(std::span<const RegionSpec> regions) {
  GuestRam ram;
  ram.fd_ = UniqueFd{memfd_create("guest-ram", MFD_CLOEXEC)};
  if (!ram.fd_) return Errno::last();
  std::uint64_t total = 0;
  for (const RegionSpec& spec : regions) total += spec.size;
  if (ftruncate(ram.fd_.number(), static_cast<off_t>(total)) != 0) return Errno::last();
  std::uint64_t offset = 0;
  for (const RegionSpec& spec : regions) {
    void* mapped = mmap(nullptr, spec.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        ram.fd_.number(), static_cast<off_t>(offset));
    if (mapped == MAP_FAILED) return Errno::last();
    ram.regions_.push_back({.guest = spec.guest,
                            .vmm = spec.vmm,
                            .size = spec.size,
                            .offset = offset,
                            .host = static_cast<std::byte*>(mapped),
                            .used = 0});
    offset += spec.size;
  }
  return ram;
}

GuestRam::GuestRam(GuestRam&& other) noexcept
    : fd_(std::move(other.fd_)), regions_(std::exchange(other.regions_, {})) {}

GuestRam::~GuestRam() {
  for (const Region& region : regions_) munmap(region.host, region.size);
}

Block GuestRam::allocate(std::size_t size, std::size_t alignment, std::size_t region) {
  CHECK(region < regions_.size());
  Region& from = regions_[region];
  const std::uint64_t start = (from.used + alignment - 1) / alignment * alignment;
  CHECK(start + size <= from.size);
  from.used = start + size;
  return {.guest = from.guest + start, .host = from.host + start, .size = size};
}

std::byte* GuestRam::at(std::uint64_t guest, std::size_t size) const {
  for (const Region& region : regions_) {
    if (guest < region.guest || guest - region.guest >= region.size) continue;
    if (size > region.size - (guest - region.guest)) return nullptr;
    return region.host + (guest - region.guest);
  }
  return nullptr;
}

std::uint64_t GuestRam::vmm_of(std::uint64_t guest) const {
  for (const Region& region : regions_) {
    if (guest >= region.guest && guest - region.guest < region.size)
      return region.vmm + (guest - region.guest);
  }
  return 0;
}

}  // namespace virtiofsd::guest
