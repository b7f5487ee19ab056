// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Asking for memory early. The driver's processor has what it wrote or read last in its own cache:
// fetching a line from there takes as long as a small system call, and can be under way meanwhile.
#pragma once

#include <algorithm>
#include <cstddef>

namespace virtiofsd {

inline constexpr std::size_t kCacheLine = 64;

// For bytes that will be written soon. Never faults, changes nothing.
inline void prefetch_for_write(const std::byte* from, std::size_t size) {
  for (std::size_t at = 0; at < size; at += std::min(kCacheLine, size - at)) {
#if defined(__x86_64__)
    // __builtin_prefetch takes PREFETCHT0 here, and then the store still has to wait for others to
    // give up the line. Processors without this one ignore it.
    asm volatile("prefetchw %0" : : "m"(from[at]));
#else
    __builtin_prefetch(from + at, 1, 3);
#endif
  }
}

// For a line that will be read soon. Likewise.
inline void prefetch_for_read(const void* at) {
  __builtin_prefetch(at, 0, 3);
}

}  // namespace virtiofsd
