// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "state/blobs.h"

#include <cstring>

#include "base/check.h"

namespace virtiofsd {

Blobs::Blobs(std::span<std::byte> memory)
    : memory_(memory), header_(static_cast<Header*>(static_cast<void*>(memory.data()))) {
  CHECK(memory.size() >= 2 * kUnit);
  std::uint32_t none = 0;
  header_->used.compare_exchange_strong(none, 1);
}

Result<std::uint32_t> Blobs::add(std::span<const std::byte> bytes) {
  CHECK(bytes.size() <= kMaxBytes);
  const std::size_t units = units_for(bytes.size());
  std::uint32_t reference = 0;
  {
    Class& of_size = classes_[units];
    Lock lock(of_size.mutex);
    if (of_size.free != 0) {
      reference = of_size.free;
      std::memcpy(&of_size.free, at(reference), sizeof of_size.free);
      if (!is_inside(of_size.free, units)) of_size.free = 0;
    }
  }
  if (reference == 0) {
    const std::size_t limit = memory_.size() / kUnit;
    std::uint32_t fresh = header_->used.load(std::memory_order_relaxed);
    do {
      if (fresh + units > limit) return Errno{ENOSPC};
    } while (!header_->used.compare_exchange_weak(fresh, static_cast<std::uint32_t>(fresh + units),
                                                  std::memory_order_relaxed));
    reference = fresh;
  }
  std::byte* place = at(reference);
  place[0] = static_cast<std::byte>(bytes.size());
  if (!bytes.empty()) std::memcpy(place + 1, bytes.data(), bytes.size());
  return reference;
}

bool Blobs::is_inside(std::uint32_t reference, std::size_t units) const {
  return reference != 0 && reference + units <= memory_.size() / kUnit;
}

void Blobs::remove(std::uint32_t reference) {
  if (!is_inside(reference, 1)) return;
  const std::size_t units = units_for(std::to_integer<std::size_t>(*at(reference)));
  if (!is_inside(reference, units)) return;
  Class& of_size = classes_[units];
  Lock lock(of_size.mutex);
  std::memcpy(at(reference), &of_size.free, sizeof of_size.free);
  of_size.free = reference;
}

std::size_t Blobs::copy(std::uint32_t reference, std::span<std::byte, kMaxBytes + 1> out) const {
  std::size_t size = 0;
  if (is_inside(reference, 1)) {
    const std::byte* place = at(reference);
    size = std::to_integer<std::size_t>(place[0]);
    if (!is_inside(reference, units_for(size))) size = 0;
    std::memcpy(out.data(), place + 1, size);
  }
  out[size] = std::byte{0};
  return size;
}

}  // namespace virtiofsd
