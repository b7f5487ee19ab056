// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The nodes that the guest forgot last, oldest first: so many are kept, for a
// guest may come back with a file handle it made of one. Any thread; the lock is a leaf.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "base/id.h"
#include "base/sync.h"

namespace virtiofsd {

class ForgottenQueue {
 public:
  // At most `capacity` nodes; 8 bytes each, as they come.
  explicit ForgottenQueue(std::size_t capacity) : capacity_(capacity) {}

  std::size_t capacity() const { return capacity_; }

  // The oldest, if it has to go for this one. With no capacity that is `id`.
  std::optional<NodeId> push(NodeId id) {
    if (capacity_ == 0) return id;
    Lock lock(mutex_);
    std::optional<NodeId> oldest;
    if (size_ == capacity_) oldest = take_oldest();
    const std::size_t at = (first_ + size_++) % capacity_;
    if (at == ring_.size()) {
      ring_.push_back(id);
    } else {
      ring_[at] = id;
    }
    return oldest;
  }

  std::optional<NodeId> pop() {
    Lock lock(mutex_);
    if (size_ == 0) return std::nullopt;
    return take_oldest();
  }

 private:
  NodeId take_oldest() REQUIRES(mutex_) {
    const NodeId oldest = ring_[first_];
    first_ = (first_ + 1) % capacity_;
    --size_;
    return oldest;
  }

  const std::size_t capacity_;
  Mutex mutex_;
  std::vector<NodeId> ring_ GUARDED_BY(mutex_);  // grows up to the capacity, then turns
  std::size_t first_ GUARDED_BY(mutex_) = 0;
  std::size_t size_ GUARDED_BY(mutex_) = 0;
};

}  // namespace virtiofsd
