// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/signal_policy.h"

#include <gtest/gtest.h>

#include <vector>

namespace virtiofsd {
namespace {

// How many requests each of the first signals tells of, with so many always behind.
std::vector<int> batches(std::size_t bytes, std::uint32_t behind, std::size_t count) {
  SignalPolicy policy;
  std::vector<int> sizes;
  for (int size = 1; sizes.size() < count; ++size) {
    if (!policy.pushed(bytes, behind, static_cast<std::uint32_t>(size))) continue;
    sizes.push_back(size);
    size = 0;
  }
  return sizes;
}

TEST(SignalPolicy, ABurstBeginsWithSmallBatches) {
  EXPECT_EQ(batches(100, 5, 5), (std::vector{2, 4, 8, 8, 8}));
}

TEST(SignalPolicy, WhereMuchWaitsTheyAreLarger) {
  EXPECT_EQ(batches(100, 12, 6), (std::vector{2, 4, 8, 12, 12, 12}));
  EXPECT_EQ(batches(100, 1000, 6), (std::vector{2, 4, 8, 16, 32, 32}));
}

TEST(SignalPolicy, WhatWaitsForFewIsToldOfEachLargeRequest) {
  EXPECT_EQ(batches(128 << 10, 0, 3), (std::vector{1, 1, 1}));
  EXPECT_EQ(batches(128 << 10, 3, 3), (std::vector{1, 1, 1}));
}

TEST(SignalPolicy, OfLargeRequestsAQuarterOfWhatWaits) {
  EXPECT_EQ(batches(64 << 10, 20, 4), (std::vector{2, 4, 5, 5}));
}

TEST(SignalPolicy, OfLargeRequestsNoMoreThanAMegabyte) {
  EXPECT_EQ(batches(128 << 10, 60, 5), (std::vector{2, 4, 8, 8, 8}));
  EXPECT_EQ(batches(1 << 20, 60, 3), (std::vector{1, 1, 1}));
}

TEST(SignalPolicy, ANewBurstBeginsSmallAgain) {
  SignalPolicy policy;
  for (int i = 0; i < 100; ++i) (void)policy.pushed(100, 100, 50);
  policy.begin_burst();
  EXPECT_FALSE(policy.pushed(100, 100, 1));
  EXPECT_TRUE(policy.pushed(100, 100, 2));
}

TEST(SignalPolicy, WhatAnotherThreadPublishedIsToldTogether) {
  SignalPolicy policy;
  EXPECT_TRUE(policy.pushed(100, 100, 2));
  // Every second is the other's.
  EXPECT_FALSE(policy.pushed(100, 100, 1));
  EXPECT_FALSE(policy.pushed(100, 100, 3));
  EXPECT_TRUE(policy.pushed(100, 100, 5));
}

TEST(SignalPolicy, WhatAnotherThreadToldOfIsToldOnce) {
  SignalPolicy policy;
  for (int i = 0; i < 7; ++i) EXPECT_FALSE(policy.pushed(128 << 10, 100, 1)) << i;
  EXPECT_FALSE(policy.pushed(128 << 10, 100, 1)) << "it wasn't a megabyte since";
}

}  // namespace
}  // namespace virtiofsd
