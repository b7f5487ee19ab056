// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/passthrough_fixture.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

class Attributes : public PassthroughTest {
 protected:
  Result<fuse_attr_out> set(NodeId node, const fuse_setattr_in& in) {
    auto c = call(node);
    return fs().setattr(c, in);
  }
  static fuse_setattr_in with(std::uint32_t valid) {
    fuse_setattr_in in{};
    in.valid = valid;
    return in;
  }
};

TEST_F(Attributes, ChmodChownTruncateAndTouch) {
  write_file("a", "0123456789");
  const NodeId a = lookup("a");
  auto in = with(FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME);
  in.mode = 0600;
  in.uid = 7;
  in.gid = 8;
  in.size = 4;
  in.atime = 1000;
  in.atimensec = 5;
  in.mtime = 2000;
  in.mtimensec = 6;
  const auto out = set(a, in);
  ASSERT_TRUE(out);
  const auto there = host("a");
  EXPECT_EQ(there.st_mode & 07777, 0600U);
  EXPECT_EQ(there.st_uid, 7U);
  EXPECT_EQ(there.st_gid, 8U);
  EXPECT_EQ(there.st_size, 4);
  EXPECT_EQ(there.st_atim.tv_sec, 1000);
  EXPECT_EQ(there.st_mtim.tv_sec, 2000) << "the truncation came after the times";
  EXPECT_EQ(there.st_mtim.tv_nsec, 6);
  EXPECT_EQ(out->attr.size, 4U);
  EXPECT_EQ(out->attr.uid, 7U);
}

TEST_F(Attributes, OneOwnerMayChangeWithoutTheOther) {
  write_file("a", "");
  ASSERT_EQ(::chown(path("a").c_str(), 5, 6), 0);
  auto in = with(FATTR_GID);
  in.uid = 99;
  in.gid = 7;
  ASSERT_TRUE(set(lookup("a"), in));
  EXPECT_EQ(host("a").st_uid, 5U);
  EXPECT_EQ(host("a").st_gid, 7U);
}

TEST_F(Attributes, TruncationTakesSetIdBitsOffOnlyWhenAsked) {
  write_file("a", "text", 06755);
  const NodeId a = lookup("a");
  auto in = with(FATTR_SIZE);
  in.size = 3;
  ASSERT_TRUE(set(a, in));
  EXPECT_EQ(host("a").st_mode & 07777, 06755U);
  in.valid |= FATTR_KILL_SUIDGID;
  in.size = 2;
  ASSERT_TRUE(set(a, in));
  EXPECT_EQ(host("a").st_mode & 07777, 0755U);
}

// Without group execute it is the host's rule for who isn't in the group.
TEST_F(Attributes, AChangeOfNothingTakesSetIdBitsOff) {
  session_.flags |= FUSE_HANDLE_KILLPRIV_V2;
  write_file("a", "text");
  const NodeId a = lookup("a");
  fuse_setattr_in nothing{};
  const auto after = [&](mode_t mode) {
    EXPECT_EQ(::chmod(path("a").c_str(), mode), 0);
    auto c = call(a, ~0U, ~0U);
    const auto out = fs().setattr(c, nothing);
    EXPECT_TRUE(out);
    EXPECT_EQ(out->attr.mode, host("a").st_mode);
    return host("a").st_mode & 07777;
  };
  EXPECT_EQ(after(06755), 0755U);
  EXPECT_EQ(after(04711), 0711U);
  EXPECT_EQ(after(02745), 02745U);  // no set-group-id bit
  EXPECT_EQ(after(01777), 01777U);
  ::mkdir(path("d").c_str(), 0755);
  ::chmod(path("d").c_str(), 02755);
  auto c = call(lookup("d"));
  ASSERT_TRUE(fs().setattr(c, nothing));
  EXPECT_EQ(host("d").st_mode & 07777, 02755U);
  session_.flags &= ~std::uint64_t{FUSE_HANDLE_KILLPRIV_V2};
  EXPECT_EQ(after(06755), 06755U);  // the guest says what goes
}

TEST_F(Attributes, ANewOwnerTakesASetGroupIdBitOffThatNobodyCanUse) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  write_file("a", "text", 02644);
  const NodeId a = lookup("a");
  auto in = with(FATTR_UID | FATTR_KILL_SUIDGID);
  in.uid = 1000;
  const auto give = [&](std::uint32_t uid) {
    ::chmod(path("a").c_str(), 02644);
    auto c = call(a, uid, uid);
    return fs().setattr(c, in).has_value();
  };
  ASSERT_TRUE(give(0));
  EXPECT_EQ(host("a").st_mode & 07777, 02644U);
  ASSERT_TRUE(give(1000));
  EXPECT_EQ(host("a").st_mode & 07777, 0644U);
  ASSERT_TRUE(give(~0U));
  EXPECT_EQ(host("a").st_mode & 07777, 02644U) << "not told, so as if in the group";
}

TEST_F(Attributes, TruncationThroughAHandleThatMayWriteOrNot) {
  write_file("a", "0123456789");
  const NodeId a = lookup("a");
  auto in = with(FATTR_SIZE | FATTR_FH);
  in.fh = open(a, O_RDWR).value;
  in.size = 5;
  EXPECT_TRUE(set(a, in));
  in.fh = open(a, O_RDONLY).value;
  in.size = 2;
  EXPECT_TRUE(set(a, in));
  EXPECT_EQ(read_file("a"), "01");
  in.fh = 12345;
  EXPECT_EQ(set(a, in).error(), Errno{EBADF});
  in.valid = FATTR_SIZE;
  in.size = ~std::uint64_t{0};
  EXPECT_EQ(set(a, in).error(), Errno{EFBIG});
}

TEST_F(Attributes, OnlyRegularFilesHaveASize) {
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  ::mkdir(path("dir").c_str(), 0755);
  EXPECT_EQ(set(lookup("fifo"), with(FATTR_SIZE)).error(), Errno{EINVAL});
  EXPECT_EQ(set(lookup("dir"), with(FATTR_SIZE)).error(), Errno{EISDIR});
}

TEST_F(Attributes, OfALinkAreTheLinksOwn) {
  write_file("target", "");
  ASSERT_EQ(::symlink("target", path("link").c_str()), 0);
  const auto before = host("target");
  const NodeId link = lookup("link");
  auto in = with(FATTR_UID | FATTR_GID | FATTR_MTIME);
  in.uid = 5;
  in.gid = 6;
  in.mtime = 1234;
  ASSERT_TRUE(set(link, in));
  EXPECT_EQ(host("link").st_uid, 5U);
  EXPECT_EQ(host("link").st_mtim.tv_sec, 1234);
  EXPECT_EQ(host("target").st_uid, before.st_uid);
  EXPECT_EQ(host("target").st_mtim.tv_sec, before.st_mtim.tv_sec);
  EXPECT_EQ(set(link, with(FATTR_MODE)).error(), Errno{EOPNOTSUPP});
}

TEST_F(Attributes, OfADeviceAreSetWithoutOpeningIt) {
  ASSERT_EQ(::mknod(path("dev").c_str(), S_IFCHR | 0600, 0x7fff), 0);  // no driver behind it
  auto in = with(FATTR_MODE | FATTR_MTIME);
  in.mode = 0640;
  in.mtime = 77;
  ASSERT_TRUE(set(lookup("dev"), in));
  EXPECT_EQ(host("dev").st_mode & 07777, 0640U);
  EXPECT_EQ(host("dev").st_mtim.tv_sec, 77);
}

TEST_F(Attributes, NowIsNow) {
  write_file("a", "");
  const NodeId a = lookup("a");
  auto in = with(FATTR_MTIME);
  in.mtime = 1;
  ASSERT_TRUE(set(a, in));
  ASSERT_TRUE(set(a, with(FATTR_MTIME | FATTR_MTIME_NOW)));
  EXPECT_GT(host("a").st_mtim.tv_sec, 1'000'000);
}

TEST_F(Attributes, StatxTellsTheBirthTime) {
  write_file("a", "abc");
  const NodeId a = lookup("a");
  auto c = call(a);
  fuse_statx_in in{};
  in.sx_mask = STATX_BASIC_STATS | STATX_BTIME;
  const auto out = fs().statx(c, in);
  ASSERT_TRUE(out);
  struct statx there {};
  ASSERT_EQ(::statx(AT_FDCWD, path("a").c_str(), 0, STATX_BASIC_STATS | STATX_BTIME, &there), 0);
  EXPECT_EQ(out->stat.mask & STATX_BTIME, there.stx_mask & STATX_BTIME);
  EXPECT_EQ(out->stat.btime.tv_sec, there.stx_btime.tv_sec);
  EXPECT_EQ(out->stat.size, 3U);
  EXPECT_EQ(out->stat.ino, there.stx_ino);
}

TEST_F(Attributes, ReadlinkGivesTheTargetUnread) {
  ASSERT_EQ(::symlink("../../etc/passwd", path("link").c_str()), 0);
  write_file("file", "");
  auto c = call(lookup("link"));
  Answer answer{4096};
  ASSERT_TRUE(fs().readlink(c, answer.body));
  EXPECT_EQ(answer.gathered(), "../../etc/passwd");
  auto not_a_link = call(lookup("file"));
  EXPECT_EQ(fs().readlink(not_a_link, answer.body).error(), Errno{EINVAL});
}

TEST_F(Attributes, AccessIsTheCallers) {
  write_file("a", "", 0640);
  const NodeId a = lookup("a");
  auto nobody = call(a, 1000, 1000);
  EXPECT_EQ(fs().access(nobody, R_OK).error(), Errno{EACCES});
  auto root = call(a);
  EXPECT_TRUE(fs().access(root, R_OK | W_OK));
  EXPECT_EQ(fs().access(root, 0x100).error(), Errno{EINVAL});
}

TEST_F(Attributes, StatfsIsTheHosts) {
  auto c = call();
  const auto out = fs().statfs(c);
  ASSERT_TRUE(out);
  EXPECT_GT(out->bsize, 0U);
  EXPECT_EQ(out->namelen, 255U);
}

}  // namespace
}  // namespace virtiofsd
