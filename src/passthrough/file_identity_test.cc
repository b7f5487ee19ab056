// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/file_identity.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <time.h>

#include "sys/files.h"

namespace virtiofsd {
namespace {

constexpr Mount kByBirth{.index = 3, .by_birth = true};
constexpr Mount kByNumber{.index = 3, .by_birth = false};

struct statx file_born(std::int64_t seconds) {
  struct statx stx {};
  stx.stx_mask = STATX_TYPE | STATX_INO | STATX_BTIME;
  stx.stx_mode = S_IFREG | 0644;
  stx.stx_ino = 17;
  stx.stx_btime.tv_sec = seconds;
  return stx;
}

TEST(FileIdentity, IsAnotherForEveryPartThatDiffers) {
  const struct statx file = file_born(1000);
  const FileIdentity identity = FileIdentity::of(file, kByBirth);
  EXPECT_EQ(identity, FileIdentity::of(file, kByBirth));
  EXPECT_NE(identity, FileIdentity::of(file_born(1001), kByBirth));
  EXPECT_NE(identity, FileIdentity::of(file, {.index = 4, .by_birth = true}));
  struct statx other = file;
  other.stx_ino = 18;
  EXPECT_NE(identity, FileIdentity::of(other, kByBirth));
  other = file;
  other.stx_mode = S_IFCHR | 0644;
  EXPECT_NE(identity, FileIdentity::of(other, kByBirth));
  other.stx_mode = S_IFREG | 0600;
  EXPECT_EQ(identity, FileIdentity::of(other, kByBirth)) << "what may change is no part of it";
}

TEST(FileIdentity, LeavesABirthOutThatSaysNothing) {
  EXPECT_EQ(FileIdentity::of(file_born(1000), kByNumber),
            FileIdentity::of(file_born(2000), kByNumber));
  struct statx without = file_born(1000);
  without.stx_mask &= ~STATX_BTIME;
  EXPECT_EQ(FileIdentity::of(without, kByBirth).birth, 0);
}

TEST(FileIdentity, LastsOnceItsBirthIsPast) {
  const std::int64_t now = ::time(nullptr);
  EXPECT_TRUE(FileIdentity::of(file_born(now - 10), kByBirth).lasts());
  EXPECT_FALSE(FileIdentity::of(file_born(now + 10), kByBirth).lasts());
  EXPECT_FALSE(FileIdentity::of(file_born(now - 10), kByNumber).lasts());
}

TEST(Mounts, AreLearntOnce) {
  const UniqueFd root{::open("/", O_PATH | O_CLOEXEC)};
  const UniqueFd proc{::open("/proc", O_PATH | O_CLOEXEC)};
  struct statx root_stx {};
  struct statx proc_stx {};
  ASSERT_TRUE(sys::statx(root, sys::kStatxMask, &root_stx));
  ASSERT_TRUE(sys::statx(proc, sys::kStatxMask, &proc_stx));
  EXPECT_FALSE(on_same_mount(root_stx, proc_stx));

  Mounts mounts;
  ASSERT_TRUE(mounts.set_root(root_stx, root));
  ASSERT_TRUE(mounts.known(root_stx));
  EXPECT_EQ(mounts.known(root_stx)->index, 0);
  EXPECT_FALSE(mounts.known(proc_stx));
  const auto learnt = mounts.learn(proc_stx, proc);
  ASSERT_TRUE(learnt);
  EXPECT_EQ(learnt->index, 1);
  EXPECT_FALSE(learnt->by_birth) << "proc makes inodes up";
  EXPECT_EQ(mounts.learn(proc_stx, proc)->index, 1);
  EXPECT_EQ(mounts.known(proc_stx)->index, 1);
}

}  // namespace
}  // namespace virtiofsd
