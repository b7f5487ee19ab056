// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Where else a file may be that isn't under the name it was known by: its name
// after a rename, or another of its hard links. Hints only, the last ones there were; who
// follows one makes sure that it leads to the right file. Any thread; the lock is a leaf.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/id.h"
#include "base/sync.h"

namespace virtiofsd {

struct PlaceOfName {
  NodeId directory;
  std::string name;
  friend bool operator==(const PlaceOfName&, const PlaceOfName&) = default;
};

class OtherNames {
 public:
  static constexpr std::size_t kCapacity = 4096;

  // What is not (or no longer) at the first place may be at the other.
  void add(NodeId directory, std::string_view name, NodeId other_directory,
           std::string_view other_name);
  // The other places of this one, the latest first, at most `most` of them.
  std::vector<PlaceOfName> of(NodeId directory, std::string_view name, std::size_t most) const;

 private:
  static constexpr std::uint16_t kNone = 0xffff;
  struct Hint {
    std::uint64_t key = 0;
    std::uint16_t older = kNone;  // in the same bucket, as is the newer
    std::uint16_t newer = kNone;
    PlaceOfName other;
  };

  static std::uint64_t key_of(NodeId directory, std::string_view name) {
    return mix(directory.value ^ std::hash<std::string_view>{}(name));
  }
  static std::uint64_t mix(std::uint64_t x) { return (x ^ (x >> 32)) * 0xd6e8feb86659fd93U; }
  static std::size_t bucket_of(std::uint64_t key) { return (key >> 40) % kCapacity; }
  void unlink_oldest() REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::vector<Hint> ring_ GUARDED_BY(mutex_);             // grows up to the capacity, then turns
  std::vector<std::uint16_t> newest_ GUARDED_BY(mutex_);  // by bucket; made with the first hint
  std::size_t next_ GUARDED_BY(mutex_) = 0;
};

}  // namespace virtiofsd
