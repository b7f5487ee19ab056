// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/other_names.h"

namespace virtiofsd {

void OtherNames::add(NodeId directory, std::string_view name, NodeId other_directory,
                     std::string_view other_name) {
  const std::uint64_t key = key_of(directory, name);
  Lock lock(mutex_);
  if (newest_.empty()) newest_.assign(kCapacity, kNone);
  std::uint16_t& newest = newest_[bucket_of(key)];
  if (newest != kNone) {
    // Again and again the same, as when a file is replaced by a new version of it.
    const Hint& last = ring_[newest];
    if (last.key == key && last.other.directory == other_directory && last.other.name == other_name)
      return;
  }
  if (ring_.size() < kCapacity) {
    ring_.emplace_back();
  } else {
    unlink_oldest();
  }
  const auto at = static_cast<std::uint16_t>(next_);
  next_ = (next_ + 1) % kCapacity;
  Hint& hint = ring_[at];
  hint.key = key;
  hint.other.directory = other_directory;
  hint.other.name = other_name;
  hint.newer = kNone;
  hint.older = newest;
  if (newest != kNone) ring_[newest].newer = at;
  newest = at;
}

// The one whose place comes next: none is older, so it is the last of its bucket.
void OtherNames::unlink_oldest() {
  const Hint& oldest = ring_[next_];
  std::uint16_t& link =
      oldest.newer == kNone ? newest_[bucket_of(oldest.key)] : ring_[oldest.newer].older;
  link = kNone;
}

std::vector<PlaceOfName> OtherNames::of(NodeId directory, std::string_view name,
                                        std::size_t most) const {
  const std::uint64_t key = key_of(directory, name);
  std::vector<PlaceOfName> places;
  Lock lock(mutex_);
  if (newest_.empty()) return places;
  for (std::uint16_t at = newest_[bucket_of(key)]; at != kNone && places.size() < most;
       at = ring_[at].older) {
    if (ring_[at].key == key) places.push_back(ring_[at].other);
  }
  return places;
}

}  // namespace virtiofsd
