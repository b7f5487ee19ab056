// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Which record was seen last under a name: a guess that saves a system call. Fixed in size, so the
// names of many files push each other out; who asks makes sure that the record still has that name.
// Any thread, without locks.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/id.h"
#include "passthrough/file_identity.h"

namespace virtiofsd {

class NamesSeen {
 public:
  static constexpr std::size_t kPlaces = 4096;  // 16 KiB

  // `name_hash`: of the name in `directory`. `slot`: the record's.
  void note(NodeId directory, std::uint32_t name_hash, std::uint32_t slot) {
    place(directory, name_hash).store(slot, std::memory_order_relaxed);
  }
  // 0: none.
  std::uint32_t slot(NodeId directory, std::uint32_t name_hash) {
    return place(directory, name_hash).load(std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint32_t>& place(NodeId directory, std::uint32_t name_hash) {
    return places_[mix_bits(directory.value ^ (std::uint64_t{name_hash} << 32)) % kPlaces];
  }

  std::array<std::atomic<std::uint32_t>, kPlaces> places_{};
};

}  // namespace virtiofsd
