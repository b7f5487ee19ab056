// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/shared_bytes.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace virtiofsd {
namespace {

struct Pieces {
  std::string a = "abc";
  std::string b = "d";
  std::string c = "efgh";
  std::vector<iovec> list{{a.data(), a.size()}, {b.data(), b.size()}, {c.data(), c.size()}};
  SharedBytes bytes{list, 8};
};

std::string take(SharedBytes& bytes, std::size_t size) {
  std::string out(size, '?');
  EXPECT_TRUE(bytes.copy_out(std::as_writable_bytes(std::span(out))));
  return out;
}

TEST(SharedBytes, CopiesOutAcrossPiecesAndNothingTwice) {
  Pieces pieces;
  EXPECT_EQ(take(pieces.bytes, 2), "ab");
  EXPECT_EQ(take(pieces.bytes, 3), "cde");
  EXPECT_EQ(pieces.bytes.size(), 3U);
  EXPECT_EQ(take(pieces.bytes, 0), "");
  EXPECT_EQ(take(pieces.bytes, 3), "fgh");
  EXPECT_EQ(pieces.bytes.size(), 0U);
}

TEST(SharedBytes, SplitsItsFrontOffToBeWrittenAfterTheRest) {
  Pieces pieces;
  std::vector<iovec> storage(5);
  auto front = pieces.bytes.split_front(5, storage);
  ASSERT_TRUE(front);
  EXPECT_EQ(front->size(), 5U);
  EXPECT_EQ(pieces.bytes.size(), 3U);
  EXPECT_TRUE(pieces.bytes.copy_in(std::as_bytes(std::span(std::string_view("678")))));
  EXPECT_TRUE(front->copy_in(std::as_bytes(std::span(std::string_view("12345")))));
  EXPECT_EQ(pieces.a + pieces.b + pieces.c, "12345678");
  EXPECT_EQ(pieces.bytes.split_front(1, storage).error(), Errno{EINVAL});
}

TEST(SharedBytes, TakesNothingWhenTooFewAreLeft) {
  Pieces pieces;
  std::string out(9, '?');
  EXPECT_EQ(pieces.bytes.copy_out(std::as_writable_bytes(std::span(out))).error(), Errno{EINVAL});
  EXPECT_EQ(pieces.bytes.skip(9).error(), Errno{EINVAL});
  EXPECT_EQ(pieces.bytes.copy_in(std::as_bytes(std::span(out))).error(), Errno{EINVAL});
  EXPECT_EQ(take(pieces.bytes, 8), "abcdefgh");
}

TEST(SharedBytes, CopiesInAcrossPieces) {
  Pieces pieces;
  ASSERT_TRUE(pieces.bytes.skip(1));
  ASSERT_TRUE(pieces.bytes.copy_in(std::as_bytes(std::span(std::string_view("12345")))));
  EXPECT_EQ(pieces.a + pieces.b + pieces.c, "a12345gh");
  EXPECT_EQ(pieces.bytes.size(), 2U);
}

TEST(SharedBytes, OffersSpaceWithoutTakingIt) {
  Pieces pieces;
  ASSERT_TRUE(pieces.bytes.skip(4));
  EXPECT_EQ(pieces.bytes.space(3).size(), 3U);
  EXPECT_EQ(pieces.bytes.space(100).size(), 4U);
  EXPECT_EQ(IoSpaceAccess::pieces(pieces.bytes.space(4)).front().iov_base, pieces.c.data());
  EXPECT_EQ(pieces.bytes.size(), 4U);
}

}  // namespace
}  // namespace virtiofsd
