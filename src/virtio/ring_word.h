// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The words of a ring: the flags in its descriptors, and single loads and stores of ring words that
// the driver uses at the same time. A value that was loaded is ours; it is never fetched a second
// time.
#pragma once

#include <atomic>
#include <cstdint>

namespace virtiofsd::virtio {

// Descriptor flags, of both kinds of ring. (virtio 1.2, 2.7.5 and 2.8.13)
inline constexpr std::uint16_t kMoreFollows = 1;  // VIRTQ_DESC_F_NEXT
inline constexpr std::uint16_t kWriteOnly = 2;    // VIRTQ_DESC_F_WRITE
inline constexpr std::uint16_t kIndirectTable = 4;

template <typename T>
T load_relaxed(const T& word) {
  return __atomic_load_n(&word, __ATOMIC_RELAXED);
}

template <typename T>
T load_acquire(const T& word) {
  return __atomic_load_n(&word, __ATOMIC_ACQUIRE);
}

template <typename T>
void store_relaxed(T& word, T value) {
  __atomic_store_n(&word, value, __ATOMIC_RELAXED);
}

template <typename T>
void store_release(T& word, T value) {
  __atomic_store_n(&word, value, __ATOMIC_RELEASE);
}

// Orders a store of ours before a later load of the driver's word. Both sides
// of a notification decision need it, or each can miss the other's store.
inline void full_fence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

}  // namespace virtiofsd::virtio
