// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Latencies in nanoseconds, counted in buckets of at most 3 % width: fixed
// memory, a few instructions to record.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace virtiofsd::bench {

class Histogram {
 public:
  void record(std::uint64_t value) {
    ++counts_[bucket(value)];
    ++total_;
  }
  void add(const Histogram& other) {
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    total_ += other.total_;
  }
  std::uint64_t total() const { return total_; }

  // The middle of the bucket that `fraction` of all values reach at most; 0 when empty.
  double quantile(double fraction) const {
    if (total_ == 0) return 0;
    const auto rank = static_cast<std::uint64_t>(fraction * static_cast<double>(total_ - 1));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (seen > rank) return middle(i);
    }
    return 0;
  }

 private:
  static constexpr unsigned kBits = 5;  // 32 buckets to each doubling
  static constexpr std::uint64_t kStep = 1U << kBits;

  static std::size_t bucket(std::uint64_t value) {
    if (value < kStep) return value;
    const unsigned shift = static_cast<unsigned>(std::bit_width(value)) - kBits - 1;
    return (std::size_t{shift} << kBits) + (value >> shift);
  }
  static double middle(std::size_t index) {
    if (index < kStep) return static_cast<double>(index);
    const std::size_t shift = (index >> kBits) - 1;
    const std::uint64_t low = (index - (shift << kBits)) << shift;
    return static_cast<double>(low) + static_cast<double>(std::uint64_t{1} << shift) / 2;
  }

  std::array<std::uint64_t, (64 - kBits + 1) * kStep> counts_{};
  std::uint64_t total_ = 0;
};

}  // namespace virtiofsd::bench
