// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/other_names.h"

#include <gtest/gtest.h>

namespace virtiofsd {
namespace {

constexpr NodeId kOne{1};
constexpr NodeId kTwo{2};

TEST(OtherNames, AreToldTheLatestFirst) {
  OtherNames names;
  EXPECT_TRUE(names.of(kOne, "a", 9).empty());
  names.add(kOne, "a", kOne, "b");
  names.add(kOne, "a", kTwo, "a");
  names.add(kTwo, "a", kOne, "z");
  const std::vector<PlaceOfName> both{{kTwo, "a"}, {kOne, "b"}};
  EXPECT_EQ(names.of(kOne, "a", 9), both);
  EXPECT_EQ(names.of(kOne, "a", 1), std::vector<PlaceOfName>{both.front()});
  EXPECT_TRUE(names.of(kOne, "a", 0).empty());
  EXPECT_TRUE(names.of(kOne, "b", 9).empty());
}

TEST(OtherNames, AreNotToldTwice) {
  OtherNames names;
  for (int i = 0; i < 3; ++i) {
    names.add(kOne, "a", kOne, "b");
    names.add(kOne, "b", kOne, "a");
  }
  EXPECT_EQ(names.of(kOne, "a", 9).size(), 1U);
  EXPECT_EQ(names.of(kOne, "b", 9).size(), 1U);
}

TEST(OtherNames, AreTheLastFewThousand) {
  OtherNames names;
  const auto name = [](std::size_t i) { return "name" + std::to_string(i); };
  constexpr std::size_t kMany = OtherNames::kCapacity * 3;
  for (std::size_t i = 0; i < kMany; ++i) names.add(kOne, name(i), kTwo, name(i + 1));
  for (std::size_t i = 0; i < kMany; ++i) {
    const auto places = names.of(kOne, name(i), 9);
    if (i < kMany - OtherNames::kCapacity) {
      EXPECT_TRUE(places.empty()) << i;
    } else {
      ASSERT_EQ(places.size(), 1U) << i;
      EXPECT_EQ(places[0].name, name(i + 1));
    }
  }
}

TEST(OtherNames, OfOneNameGoOneByOne) {
  OtherNames names;
  const auto name = [](std::size_t i) { return "name" + std::to_string(i); };
  for (std::size_t i = 0; i < OtherNames::kCapacity; ++i) names.add(kOne, "a", kTwo, name(i));
  EXPECT_EQ(names.of(kOne, "a", 9999).size(), OtherNames::kCapacity);
  for (std::size_t i = 0; i < OtherNames::kCapacity; ++i) names.add(kOne, "c", kTwo, name(i));
  EXPECT_TRUE(names.of(kOne, "a", 9).empty());
  EXPECT_EQ(names.of(kOne, "c", 9999).size(), OtherNames::kCapacity);
}

}  // namespace
}  // namespace virtiofsd
