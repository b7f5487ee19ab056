// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/directory_writer.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <vector>

namespace virtiofsd::fuse {
namespace {

template <typename T>
T read_at(const DirectoryWriter& writer, std::size_t at) {
  T value;
  std::memcpy(static_cast<void*>(&value), writer.bytes().data() + at, sizeof(value));
  return value;
}

TEST(DirectoryWriter, LaysEntriesOutOnMultiplesOfEight) {
  std::array<std::byte, 256> buffer{};
  DirectoryWriter writer{buffer, false};

  ASSERT_TRUE(writer.add({.name = "abc", .ino = 11, .next = 1, .type = 8}));
  ASSERT_TRUE(writer.add({.name = "12345678", .ino = 12, .next = 0xffffffffffffffff, .type = 4}));

  EXPECT_EQ(writer.size(), 32U + 32U);
  const auto first = read_at<fuse_dirent>(writer, 0);
  EXPECT_EQ(first.ino, 11U);
  EXPECT_EQ(first.off, 1U);
  EXPECT_EQ(first.namelen, 3U);
  EXPECT_EQ(first.type, 8U);
  EXPECT_EQ(std::memcmp(writer.bytes().data() + 24, "abc\0\0\0\0\0", 8), 0);
  const auto second = read_at<fuse_dirent>(writer, 32);
  EXPECT_EQ(second.off, 0xffffffffffffffff);
  EXPECT_EQ(second.namelen, 8U);
}

TEST(DirectoryWriter, PutsTheAttributesInFrontForReaddirplus) {
  std::array<std::byte, 256> buffer{};
  DirectoryWriter writer{buffer, true};
  fuse_entry_out attributes{};
  attributes.nodeid = 99;

  ASSERT_TRUE(writer.add({.name = "a", .ino = 11, .next = 1, .type = 8}, attributes));

  EXPECT_EQ(writer.size(), 160U);
  EXPECT_EQ(read_at<fuse_entry_out>(writer, 0).nodeid, 99U);
  EXPECT_EQ(read_at<fuse_dirent>(writer, sizeof attributes).ino, 11U);
}

TEST(DirectoryWriter, SaysNoAttributesWithNodeZero) {
  std::array<std::byte, 256> buffer;
  buffer.fill(std::byte{0xee});
  DirectoryWriter writer{buffer, true};

  ASSERT_TRUE(writer.add({.name = ".", .ino = 11, .next = 1, .type = 4}));

  EXPECT_EQ(read_at<fuse_entry_out>(writer, 0).nodeid, 0U);
}

TEST(DirectoryWriter, FillsTheBufferToTheLastByteAndNoFurther) {
  std::array<std::byte, 32 + 31> buffer{};
  DirectoryWriter writer{buffer, false};

  EXPECT_TRUE(writer.fits(8));
  ASSERT_TRUE(writer.add({.name = "12345678", .ino = 1, .next = 1, .type = 8}));
  EXPECT_FALSE(writer.fits(1));  // 31 bytes are left, a record takes 32
  EXPECT_FALSE(writer.add({.name = "x", .ino = 1, .next = 2, .type = 8}));
  EXPECT_EQ(writer.size(), 32U);
}

TEST(DirectoryWriter, ClearsThePaddingOfAUsedBuffer) {
  std::array<std::byte, 32> buffer;
  buffer.fill(std::byte{0xee});
  DirectoryWriter writer{buffer, false};

  ASSERT_TRUE(writer.add({.name = "x", .ino = 1, .next = 1, .type = 8}));

  for (std::size_t at = 25; at < 32; ++at) EXPECT_EQ(writer.bytes()[at], std::byte{0});
}

TEST(DirectoryWriter, IsEmptyWithoutRoom) {
  DirectoryWriter writer{{}, true};
  EXPECT_FALSE(writer.fits(0));
  EXPECT_FALSE(writer.add({.name = "x", .ino = 1, .next = 1, .type = 8}));
  EXPECT_TRUE(writer.empty());
}

}  // namespace
}  // namespace virtiofsd::fuse
