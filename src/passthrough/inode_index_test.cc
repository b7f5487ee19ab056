// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/inode_index.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "state/arena.h"

namespace virtiofsd {
namespace {

class InodeIndexTest : public ::testing::Test {
 protected:
  // A record of that file, not linked yet.
  std::uint32_t make(const FileIdentity& identity) {
    const auto slot = inodes_.allocate();
    EXPECT_TRUE(slot);
    InodeRecord& record = inodes_.at(*slot);
    record.ino = identity.ino;
    record.birth = identity.birth;
    record.mount = identity.mount;
    record.type = identity.type;
    return *slot;
  }
  void link(std::uint32_t slot) {
    const std::uint64_t hash = identity_of(inodes_.at(slot)).hash();
    InodeIndex::Shard& in = index_.shard(hash);
    Lock lock(in.mutex);
    index_.link(in, slot, hash);
  }
  void unlink(std::uint32_t slot) {
    const std::uint64_t hash = identity_of(inodes_.at(slot)).hash();
    InodeIndex::Shard& in = index_.shard(hash);
    Lock lock(in.mutex);
    index_.unlink(in, slot, hash);
  }
  std::uint32_t find(const FileIdentity& identity) {
    InodeIndex::Shard& in = index_.shard(identity.hash());
    Lock lock(in.mutex);
    return index_.find(in, identity, identity.hash());
  }

  static constexpr std::array kPlan = {
      SectionPlan{SectionKind::kInodes, sizeof(InodeRecord), 20'000}};
  std::shared_ptr<Arena> arena_ = *Arena::create(kPlan);
  InodeSlab inodes_{arena_->section(SectionKind::kInodes)};
  InodeIndex index_{inodes_};
};

TEST_F(InodeIndexTest, FindsWhatIsLinkedAndNothingElse) {
  const FileIdentity file{.ino = 1, .birth = 2, .mount = 3, .type = 4};
  EXPECT_EQ(find(file), 0U);
  const std::uint32_t slot = make(file);
  EXPECT_EQ(find(file), 0U);
  link(slot);
  EXPECT_EQ(find(file), slot);
  EXPECT_EQ(find({.ino = 1, .birth = 9, .mount = 3, .type = 4}), 0U);
  unlink(slot);
  EXPECT_EQ(find(file), 0U);
}

// Grown many times, and taken apart from the front, the middle and the end of its chains.
TEST_F(InodeIndexTest, HoldsThousands) {
  std::vector<std::uint32_t> slots{0};
  const auto file = [](std::uint64_t ino) { return FileIdentity{.ino = ino}; };
  for (std::uint64_t ino = 1; ino <= 10'000; ++ino) {
    slots.push_back(make(file(ino)));
    link(slots.back());
  }
  for (std::uint64_t ino = 1; ino <= 10'000; ++ino) ASSERT_EQ(find(file(ino)), slots[ino]);
  for (std::uint64_t ino = 1; ino <= 10'000; ++ino) {
    if (ino % 3 != 0) unlink(slots[ino]);
  }
  for (std::uint64_t ino = 1; ino <= 10'000; ++ino)
    ASSERT_EQ(find(file(ino)), ino % 3 == 0 ? slots[ino] : 0) << ino;
}

}  // namespace
}  // namespace virtiofsd
