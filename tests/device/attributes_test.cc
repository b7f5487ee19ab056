// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// GETATTR, STATX, SETATTR, ACCESS, STATFS.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

class Attributes : public DeviceTest {};
INSTANTIATE_DEVICE_TEST(Attributes);

// ---- GETATTR ----

TEST_P(Attributes, GetattrTellsWhatStatTells) {
  tree().write("file", "0123456789", 0604);
  tree().chown("file", 12, 34);
  const fuse_attr attr = GET(fuse().getattr(node("file")));
  const struct stat host = tree().stat("file");
  EXPECT_EQ(attr.ino, host.st_ino);
  EXPECT_EQ(attr.size, 10U);
  EXPECT_EQ(attr.mode, host.st_mode);
  EXPECT_EQ(attr.uid, 12U);
  EXPECT_EQ(attr.gid, 34U);
  EXPECT_EQ(attr.nlink, 1U);
  EXPECT_EQ(attr.blocks, static_cast<std::uint64_t>(host.st_blocks));
  EXPECT_EQ(attr.mtime, static_cast<std::uint64_t>(host.st_mtim.tv_sec));
  EXPECT_EQ(attr.mtimensec, static_cast<std::uint32_t>(host.st_mtim.tv_nsec));
  EXPECT_EQ(attr.ctime, static_cast<std::uint64_t>(host.st_ctim.tv_sec));
}

TEST_P(Attributes, GetattrOfTheRootWorksWithoutLookup) {
  EXPECT_EQ(GET(fuse().getattr(kRoot)).ino, tree().stat("").st_ino);
}

TEST_P(Attributes, GetattrByHandleSeesAnUnlinkedFile) {
  tree().write("file", "abc");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_DONE(fuse().unlink(kRoot, "file"));
  EXPECT_EQ(GET(fuse().getattr(file, handle)).size, 3U);
  EXPECT_DONE(fuse().release(file, handle));
}

TEST_P(Attributes, GetattrOfANodeThatIsNoneIsRefused) {
  EXPECT_FALSE(fuse().getattr(kNoNode));
  EXPECT_FALSE(fuse().getattr(0));
  EXPECT_FALSE(fuse().getattr(~0ULL));
}

// ---- STATX ----

TEST_P(Attributes, StatxBringsTheTimeOfBirth) {
  if (foreign()) GTEST_SKIP() << "no peer has STATX";
  tree().write("file", "12345", 0600);
  const StatxAttributes got = GET(fuse().statx(node("file"), STATX_BASIC_STATS | STATX_BTIME));
  struct statx host {};
  ASSERT_EQ(statx(AT_FDCWD, tree().path("file").c_str(), 0, STATX_BASIC_STATS | STATX_BTIME, &host),
            0);
  EXPECT_EQ(got.size, 5U);
  EXPECT_EQ(got.mode, S_IFREG | 0600);
  EXPECT_EQ(got.ino, host.stx_ino);
  EXPECT_EQ(got.btime.seconds, host.stx_btime.tv_sec);
  EXPECT_EQ(got.btime.nanoseconds, host.stx_btime.tv_nsec);
  EXPECT_EQ(got.mask & STATX_BTIME, host.stx_mask & STATX_BTIME);
}

TEST_P(Attributes, StatxOfANodeThatIsNoneIsRefused) {
  if (foreign()) GTEST_SKIP() << "no peer has STATX";
  EXPECT_FALSE(fuse().statx(kNoNode));
}

// ---- SETATTR ----

TEST_P(Attributes, SetattrChangesTheMode) {
  tree().write("file", "", 0644);
  const std::uint64_t file = node("file");
  EXPECT_EQ(GET(fuse().chmod(file, 0751)).mode & 07777U, 0751U);
  EXPECT_EQ(tree().stat("file").st_mode & 07777U, 0751U);
}

TEST_P(Attributes, SetattrChangesOwners) {
  tree().write("file", "");
  const std::uint64_t file = node("file");
  EXPECT_EQ(GET(fuse().chown(file, 55, {})).uid, 55U);
  EXPECT_EQ(GET(fuse().chown(file, {}, 66)).gid, 66U);
  EXPECT_EQ(tree().stat("file").st_uid, 55U);
  EXPECT_EQ(tree().stat("file").st_gid, 66U);
}

TEST_P(Attributes, SetattrOfASymlinkChangesTheSymlinkItself) {
  tree().write("file", "");
  tree().symlink("link", "file");
  EXPECT_EQ(GET(fuse().chown(node("link"), 77, 78)).uid, 77U);
  EXPECT_EQ(tree().stat("file").st_uid, 0U);
  EXPECT_EQ(tree().stat("link").st_uid, 77U);
}

TEST_P(Attributes, SetattrChangesTheSizeByNodeAndByHandle) {
  tree().write("file", "0123456789");
  const std::uint64_t file = node("file");
  EXPECT_EQ(GET(fuse().truncate(file, 4)).size, 4U);
  EXPECT_EQ(tree().read("file"), "0123");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_EQ(GET(fuse().truncate(file, 6, handle)).size, 6U);
  EXPECT_DONE(fuse().release(file, handle));
  EXPECT_EQ(tree().stat("file").st_size, 6);
}

TEST_P(Attributes, SetattrSetsTimes) {
  tree().write("file", "");
  fuse_setattr_in in{};
  in.valid = FATTR_ATIME | FATTR_MTIME;
  in.atime = 1'000'000'000;
  in.atimensec = 123;
  in.mtime = 2'000'000'000;
  in.mtimensec = 456;
  const fuse_attr attr = GET(fuse().setattr(node("file"), in));
  EXPECT_EQ(attr.atime, 1'000'000'000U);
  EXPECT_EQ(attr.mtime, 2'000'000'000U);
  EXPECT_EQ(attr.mtimensec, 456U);
  EXPECT_EQ(tree().stat("file").st_atim.tv_nsec, 123);
}

TEST_P(Attributes, SetattrSetsTimesOfSymlinksAndOfSpecialFiles) {
  tree().symlink("link", "nowhere");
  tree().fifo("fifo");
  for (const char* name : {"link", "fifo"}) {
    fuse_setattr_in in{};
    in.valid = FATTR_MTIME;
    in.mtime = 987'654'321;
    EXPECT_EQ(GET(fuse().setattr(node(name), in)).mtime, 987'654'321U) << name;
    EXPECT_EQ(tree().stat(name).st_mtim.tv_sec, 987'654'321) << name;
  }
}

TEST_P(Attributes, SetattrNowTakesTheHostsClock) {
  tree().write("file", "");
  const std::uint64_t file = node("file");
  fuse_setattr_in in{};
  in.valid = FATTR_MTIME;
  in.mtime = 1;
  EXPECT_DONE(fuse().setattr(file, in));
  in.valid = FATTR_MTIME | FATTR_MTIME_NOW;
  EXPECT_GT(GET(fuse().setattr(file, in)).mtime, 1'500'000'000U);
}

TEST_P(Attributes, SetattrOfAFifoNeverOpensIt) {
  tree().fifo("fifo");
  EXPECT_EQ(GET(fuse().chmod(node("fifo"), 0600)).mode & 07777U, 0600U);
  EXPECT_FALSE(fuse().truncate(node("fifo"), 0));
}

TEST_P(Attributes, SetattrRefusesWhatItShould) {
  tree().mkdir("dir");
  tree().write("file", "");
  EXPECT_REFUSED(EISDIR, fuse().truncate(node("dir"), 0));
  EXPECT_FALSE(fuse().chmod(kNoNode, 0600));
  EXPECT_FALSE(fuse().truncate(node("file"), 0, kNoHandle));
  if (!foreign()) {
    EXPECT_REFUSED(EINVAL, fuse().truncate(node("file"), 1ULL << 63));
  }
}

TEST_P(Attributes, SetattrWithNothingToSetAnswersTheAttributes) {
  tree().write("file", "abc");
  EXPECT_EQ(GET(fuse().setattr(node("file"), {})).size, 3U);
}

// ---- ACCESS ----

TEST_P(Attributes, AccessAnswersOrSaysItIsNotThere) {
  tree().write("file", "", 0600);
  const auto root_may = fuse().access(node("file"), R_OK | W_OK);
  EXPECT_TRUE(outcome(root_may).error == 0 || outcome(root_may).error == ENOSYS);
}

// ---- STATFS ----

TEST_P(Attributes, StatfsTellsTheHostsFileSystem) {
  const fuse_kstatfs got = GET(fuse().statfs(kRoot));
  struct statvfs host {};
  ASSERT_EQ(statvfs(tree().root().c_str(), &host), 0);
  EXPECT_EQ(got.blocks, host.f_blocks);
  EXPECT_EQ(got.files, host.f_files);
  EXPECT_EQ(got.frsize, host.f_frsize);
  EXPECT_EQ(got.namelen, host.f_namemax);
}

TEST_P(Attributes, StatfsOfANodeThatIsNoneIsRefused) {
  EXPECT_FALSE(fuse().statfs(kNoNode));
}

}  // namespace
}  // namespace virtiofsd::guest
