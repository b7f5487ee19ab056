// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Short byte strings in the arena (names, kernel file handles), named by a
// 32-bit reference. Size classes of 16 bytes; freed ones are reused by class.
// Thread-safe; one leaf mutex per class. Whatever the memory or a reference
// says, nothing outside the memory is touched: a reference that leads out of
// it names an empty string.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/sync.h"

namespace virtiofsd {

class Blobs {
 public:
  static constexpr std::size_t kMaxBytes = 255;
  static constexpr std::size_t kUnit = 16;

  // `memory` is zero-filled or holds an earlier life.
  explicit Blobs(std::span<std::byte> memory);

  // A reference, never 0. ENOSPC when the section is full. At most kMaxBytes.
  Result<std::uint32_t> add(std::span<const std::byte> bytes);
  void remove(std::uint32_t reference);
  // Copies up to 255 bytes to `out`, NUL after them. Returns how many.
  std::size_t copy(std::uint32_t reference, std::span<std::byte, kMaxBytes + 1> out) const;

 private:
  struct Header {
    std::atomic<std::uint32_t> used;  // units ever given out
  };
  struct Class {
    Mutex mutex;
    std::uint32_t free GUARDED_BY(mutex) = 0;
  };
  static std::size_t units_for(std::size_t bytes) { return (bytes + 1 + kUnit - 1) / kUnit; }
  bool is_inside(std::uint32_t reference, std::size_t units) const;
  std::byte* at(std::uint32_t reference) const { return memory_.data() + reference * kUnit; }

  std::span<std::byte> memory_;
  Header* header_;
  std::array<Class, 17> classes_;  // by units
};

}  // namespace virtiofsd
