// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// When to tell the driver of completions, which are published one by one and
// signalled together: a signal may cost as much as a request, for it wakes a
// sleeper. A driver that is awake asks for none, and then signalling costs nothing.
// One thread's own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace virtiofsd {

class SignalPolicy {
 public:
  // The ring is empty and everything signalled. The first signal of a burst comes early: a driver
  // that sleeps until all its requests are done hands out nothing meanwhile, and then we sleep.
  void begin_burst() {
    signalled();
    batch_ = kFirstBatch;
  }

  // A request that moved so many bytes is published; `behind` more wait at least, and the driver
  // wasn't told of `unsignalled` yet, this one and other threads' included. True when it is to be.
  bool pushed(std::size_t bytes, std::uint32_t behind, std::uint32_t unsignalled) {
    if (unsignalled <= 1) signalled();  // by another thread
    bytes_ += bytes;
    if (bytes >= kLargeRequest) ++large_;
    // Large ones take long, so the driver shouldn't wait for many.
    const bool large_are_enough = large_ > 0 && (large_ >= behind / 4 || bytes_ >= kMostBytes);
    if (unsignalled < batch_ && !large_are_enough) return false;
    signalled();
    // As many again as wait: then the driver comes back with more when half of them are done.
    batch_ = std::min(batch_ * 2, std::clamp(behind, kLargestBatch, kLargestDeepBatch));
    return true;
  }

  static constexpr std::uint32_t kFirstBatch = 2;
  static constexpr std::uint32_t kLargestBatch = 8;
  static constexpr std::uint32_t kLargestDeepBatch = 32;
  static constexpr std::size_t kLargeRequest = 32U << 10;  // bytes
  static constexpr std::size_t kMostBytes = 1U << 20;

 private:
  void signalled() {
    large_ = 0;
    bytes_ = 0;
  }

  std::uint32_t batch_ = kFirstBatch;
  // Of this thread's since the last signal:
  std::uint32_t large_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace virtiofsd
