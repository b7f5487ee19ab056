// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/dirty_log.h"

#include <algorithm>
#include <atomic>
#include <limits>

namespace virtiofsd {

Result<std::shared_ptr<DirtyLog>> DirtyLog::map(FdRef fd, std::uint64_t offset,
                                                std::uint64_t size) {
  auto mapping = TRY(Mapping::map(fd, offset, size));
  return std::shared_ptr<DirtyLog>(new DirtyLog(std::move(mapping)));
}

void DirtyLog::mark(GuestAddress start, std::uint64_t size) {
  if (size == 0) return;
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  const std::uint64_t last_byte = size - 1 > kMost - start.value ? kMost : start.value + (size - 1);
  const std::uint64_t pages = static_cast<std::uint64_t>(mapping_->size()) * 8;
  std::uint64_t page = start.value / kPageBytes;
  const std::uint64_t end = std::min(last_byte / kPageBytes + 1, pages);
  while (page < end) {
    const std::uint64_t byte_end = std::min(end, (page / 8 + 1) * 8);
    const auto bits = static_cast<std::uint8_t>(((1U << (byte_end - page)) - 1U) << (page % 8));
    auto* const byte = static_cast<std::uint8_t*>(static_cast<void*>(mapping_->data() + page / 8));
    // Release: a VMM that takes the bit sees the bytes it stands for.
    std::atomic_ref<std::uint8_t>(*byte).fetch_or(bits, std::memory_order_release);
    page = byte_end;
  }
}

}  // namespace virtiofsd
