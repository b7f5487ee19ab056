// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/operations.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <limits>

#include "fuse/fake_file_system.h"

namespace virtiofsd::fuse {
namespace {

constexpr std::uint64_t kTooFar = std::uint64_t{1} << 63;

class Operations : public ::testing::Test {
 protected:
  Operations() {
    EXPECT_EQ(guest.init().error(), 0);
    guest.fs.calls.clear();
    guest.node = 7;
  }
  // Settles other flags than a modern guest with default options.
  void renegotiate(Offer offer, std::uint64_t flags) {
    auto session = negotiate(
        [flags] {
          fuse_init_in in{};
          in.major = 7;
          in.minor = kMinor;
          in.flags = static_cast<std::uint32_t>(flags);
          in.flags2 = static_cast<std::uint32_t>(flags >> 32);
          return in;
        }(),
        offer);
    ASSERT_TRUE(session);
    guest.dispatcher.restore(*session);
  }
  void expect_done(const Reply& reply, std::string_view call) {
    EXPECT_EQ(reply.error(), 0);
    EXPECT_EQ(reply.used, 16U);
    EXPECT_EQ(guest.fs.last(), call);
  }
  void expect_entry(const Reply& reply, std::string_view call) {
    EXPECT_EQ(reply.error(), 0);
    EXPECT_EQ(reply.used, 16U + 128U);
    EXPECT_EQ(reply.as<fuse_entry_out>().nodeid, 42U);
    EXPECT_EQ(guest.fs.last(), call);
  }
  void expect_created(const Reply& reply, std::string_view call) {
    EXPECT_EQ(reply.error(), 0);
    ASSERT_EQ(reply.used, 16U + 128U + 16U);
    EXPECT_EQ(reply.as<fuse_entry_out>().nodeid, 42U);
    fuse_open_out open{};
    std::memcpy(&open, reply.body.data() + 128, sizeof open);
    EXPECT_EQ(open.fh, 55U);
    EXPECT_EQ(guest.fs.last(), call);
  }
  void expect_refused(const Reply& reply, int error) {
    EXPECT_EQ(reply.error(), error);
    EXPECT_EQ(reply.used, 16U);
    EXPECT_TRUE(guest.fs.calls.empty()) << guest.fs.last();
  }

  Guest guest;
};

TEST_F(Operations, LookupTakesAName) {
  expect_entry(guest.send(FUSE_LOOKUP, bytes_of("file")), "lookup 7 file");
}

TEST_F(Operations, LookupOfDotsAsksForTheNodeItselfOrItsParent) {
  expect_entry(guest.send(FUSE_LOOKUP, bytes_of(".")), "lookup_self 7");
  expect_entry(guest.send(FUSE_LOOKUP, bytes_of("..")), "lookup_parent 7");
}

TEST_F(Operations, NoNameClimbs) {
  for (const char* name : {"", "a/b", "/", "../x"}) {
    expect_refused(guest.send(FUSE_LOOKUP, bytes_of(name)), EINVAL);
    expect_refused(guest.send(FUSE_UNLINK, bytes_of(name)), EINVAL);
  }
  for (const char* name : {".", ".."}) {
    expect_refused(guest.send(FUSE_UNLINK, bytes_of(name)), EINVAL);
    expect_refused(guest.send(FUSE_MKDIR, bytes_of(fuse_mkdir_in{}, name)), EINVAL);
    expect_refused(guest.send(FUSE_RENAME, bytes_of(fuse_rename_in{1}, "a", name)), EINVAL);
    expect_refused(guest.send(FUSE_LINK, bytes_of(fuse_link_in{1}, name)), EINVAL);
  }
}

TEST_F(Operations, ANameHas255Bytes) {
  const std::string longest(255, 'n');
  expect_entry(guest.send(FUSE_LOOKUP, bytes_of(longest)), "lookup 7 " + longest);
  guest.fs.calls.clear();
  expect_refused(guest.send(FUSE_LOOKUP, bytes_of(longest + "n")), ENAMETOOLONG);
}

TEST_F(Operations, ANameEndsWithNul) {
  Bytes name = bytes_of("name");
  name.pop_back();
  expect_refused(guest.send(FUSE_LOOKUP, name), EINVAL);
  expect_refused(guest.send(FUSE_LOOKUP), EINVAL);
}

TEST_F(Operations, BatchForgetForgetsEach) {
  const Bytes arguments = bytes_of(fuse_batch_forget_in{.count = 2, .dummy = 0},
                                   fuse_forget_one{10, 1}, fuse_forget_one{11, 5});
  EXPECT_EQ(guest.send(FUSE_BATCH_FORGET, arguments).used, 0U);
  EXPECT_EQ(guest.fs.calls, (std::vector<std::string>{"forget 10 1", "forget 11 5"}));
}

TEST_F(Operations, BatchForgetStopsWhereTheRequestEnds) {
  const Bytes arguments = bytes_of(fuse_batch_forget_in{.count = 0xffffffff, .dummy = 0},
                                   fuse_forget_one{10, 1}, std::uint64_t{11});
  EXPECT_EQ(guest.send(FUSE_BATCH_FORGET, arguments).used, 0U);
  EXPECT_EQ(guest.fs.calls, (std::vector<std::string>{"forget 10 1"}));
}

TEST_F(Operations, SymlinkTakesNameThenTarget) {
  expect_entry(guest.send(FUSE_SYMLINK, bytes_of("link", "../any/where")),
               "symlink 7 link ../any/where");
}

TEST_F(Operations, ASymlinkTargetHas4095Bytes) {
  const std::string longest(4095, 't');
  expect_entry(guest.send(FUSE_SYMLINK, bytes_of("link", longest)), "symlink 7 link " + longest);
  guest.fs.calls.clear();
  expect_refused(guest.send(FUSE_SYMLINK, bytes_of("link", longest + "t")), ENAMETOOLONG);
  expect_refused(guest.send(FUSE_SYMLINK, bytes_of("link", "")), ENOENT);
  expect_refused(guest.send(FUSE_SYMLINK, bytes_of("link")), EINVAL);
}

TEST_F(Operations, MknodMkdirAndLink) {
  expect_entry(
      guest.send(FUSE_MKNOD,
                 bytes_of(fuse_mknod_in{.mode = 0644, .rdev = 5, .umask = 022, .padding = 0}, "n")),
      "mknod 7 n 644 5 22");
  expect_entry(guest.send(FUSE_MKDIR, bytes_of(fuse_mkdir_in{.mode = 0755, .umask = 022}, "d")),
               "mkdir 7 d 755 22");
  expect_entry(guest.send(FUSE_LINK, bytes_of(fuse_link_in{13}, "l")), "link 7 13 l");
}

TEST_F(Operations, CreateAnswersWithEntryAndHandle) {
  const fuse_create_in in{.flags = O_RDWR, .mode = 0600, .umask = 077, .open_flags = 1};
  expect_created(guest.send(FUSE_CREATE, bytes_of(in, "f")), "create 7 f 2 600 77 1");
}

TEST_F(Operations, TmpfileIgnoresTheNameThatIsNone) {
  const fuse_create_in in{.flags = O_RDWR, .mode = 0600, .umask = 077, .open_flags = 1};
  expect_created(guest.send(FUSE_TMPFILE, bytes_of(in, "/")), "tmpfile 7 2 600 77 1");
  expect_created(guest.send(FUSE_TMPFILE, bytes_of(in)), "tmpfile 7 2 600 77 1");
}

TEST_F(Operations, UnlinkAndRmdir) {
  expect_done(guest.send(FUSE_UNLINK, bytes_of("f")), "unlink 7 f");
  expect_done(guest.send(FUSE_RMDIR, bytes_of("d")), "rmdir 7 d");
}

TEST_F(Operations, RenameTakesBothNames) {
  expect_done(guest.send(FUSE_RENAME, bytes_of(fuse_rename_in{9}, "a", "b")), "rename 7 a 9 b 0");
  for (const std::uint32_t flags : {0U, 1U, 2U, 4U})
    expect_done(
        guest.send(FUSE_RENAME2,
                   bytes_of(fuse_rename2_in{.newdir = 9, .flags = flags, .padding = 0}, "a", "b")),
        fmt::format("rename 7 a 9 b {}", flags));
}

TEST_F(Operations, RenameRefusesUnknownFlagsAndAMissingName) {
  const fuse_rename2_in in{.newdir = 9, .flags = 8, .padding = 0};
  expect_refused(guest.send(FUSE_RENAME2, bytes_of(in, "a", "b")), EINVAL);
  expect_refused(guest.send(FUSE_RENAME, bytes_of(fuse_rename_in{9}, "a")), EINVAL);
}

TEST_F(Operations, GetattrUsesTheHandleOnlyWhenTold) {
  Reply reply = guest.send(FUSE_GETATTR, bytes_of(fuse_getattr_in{0, 0, 31}));
  EXPECT_EQ(reply.as<fuse_attr_out>().attr.ino, 77U);
  EXPECT_EQ(reply.used, 16U + 104U);
  EXPECT_EQ(guest.fs.last(), "getattr 7 -");
  guest.send(FUSE_GETATTR, bytes_of(fuse_getattr_in{FUSE_GETATTR_FH, 0, 31}));
  EXPECT_EQ(guest.fs.last(), "getattr 7 31");
}

TEST_F(Operations, StatxAnswersAllOfIt) {
  const fuse_statx_in in{
      .getattr_flags = 1, .reserved = 0, .fh = 31, .sx_flags = 2, .sx_mask = 0xfff};
  const Reply reply = guest.send(FUSE_STATX, bytes_of(in));
  EXPECT_EQ(reply.used, 16U + 288U);
  EXPECT_EQ(reply.as<fuse_statx_out>().stat.ino, 77U);
  EXPECT_EQ(guest.fs.last(), "statx 7 1 31 2 4095");
}

TEST_F(Operations, SetattrPassesWhatIsValidOn) {
  fuse_setattr_in in{};
  in.valid = FATTR_SIZE | FATTR_MODE | FATTR_FH;
  in.fh = 31;
  in.size = 4096;
  in.mode = 0640;
  EXPECT_EQ(guest.send(FUSE_SETATTR, bytes_of(in)).used, 16U + 104U);
  EXPECT_EQ(guest.fs.last(), fmt::format("setattr 7 {} 31 4096 640", in.valid));
  guest.fs.calls.clear();
  in.size = kTooFar;
  expect_refused(guest.send(FUSE_SETATTR, bytes_of(in)), EINVAL);
}

TEST_F(Operations, ReadlinkAnswersWithoutNul) {
  const Reply reply = guest.send(FUSE_READLINK);
  EXPECT_EQ(text_of(reply.body), "content");
  EXPECT_EQ(guest.fs.last(), "readlink 7");
}

TEST_F(Operations, ReadlinkHasRoomForTheLongestTarget) {
  guest.fs.content.assign(4095, 't');
  EXPECT_EQ(guest.send(FUSE_READLINK).body.size(), 4095U);
  guest.room = 16 + 4094;
  EXPECT_EQ(guest.send(FUSE_READLINK).error(), EINVAL);
}

TEST_F(Operations, AccessTakesAMask) {
  expect_done(guest.send(FUSE_ACCESS, bytes_of(fuse_access_in{.mask = 5, .padding = 0})),
              "access 7 5");
  guest.fs.calls.clear();
  expect_refused(guest.send(FUSE_ACCESS, bytes_of(fuse_access_in{.mask = 8, .padding = 0})),
                 EINVAL);
}

TEST_F(Operations, StatfsAndSyncfs) {
  const Reply reply = guest.send(FUSE_STATFS);
  EXPECT_EQ(reply.used, 16U + 80U);
  EXPECT_EQ(reply.as<fuse_kstatfs>().bsize, 4096U);
  expect_done(guest.send(FUSE_SYNCFS, bytes_of(fuse_syncfs_in{})), "syncfs 7");
}

TEST_F(Operations, OpenAndOpendir) {
  Reply reply = guest.send(FUSE_OPEN, bytes_of(fuse_open_in{.flags = 2, .open_flags = 1}));
  EXPECT_EQ(reply.used, 16U + 16U);
  EXPECT_EQ(reply.as<fuse_open_out>().fh, 55U);
  EXPECT_EQ(guest.fs.last(), "open 7 2 1");
  reply = guest.send(FUSE_OPENDIR, bytes_of(fuse_open_in{.flags = 2, .open_flags = 0}));
  EXPECT_EQ(reply.as<fuse_open_out>().fh, 56U);
  EXPECT_EQ(guest.fs.last(), "opendir 7 2");
}

TEST_F(Operations, ReadGivesTheKernelTheGuestsOwnMemory) {
  const fuse_read_in in{.fh = 31,
                        .offset = 512,
                        .size = 4096,
                        .read_flags = 0,
                        .lock_owner = 0,
                        .flags = O_RDONLY,
                        .padding = 0};
  const Reply reply = guest.send(FUSE_READ, bytes_of(in));
  EXPECT_EQ(guest.fs.last(), "read 7 31 512 4096 0");
  EXPECT_EQ(text_of(reply.body), "content");
  EXPECT_EQ(reply.used, 16U + 7U);
  EXPECT_TRUE(guest.untouched);
}

TEST_F(Operations, ReadIsClampedToTheRoom) {
  guest.room = 16 + 3;
  const Reply reply = guest.send(FUSE_READ, bytes_of(read_of(31, 0, 0xffffffff)));
  EXPECT_EQ(guest.fs.last(), "read 7 31 0 3 0");
  EXPECT_EQ(text_of(reply.body), "con");
}

TEST_F(Operations, ReadRefusesAnOffsetBeyondTheLast) {
  expect_refused(guest.send(FUSE_READ, bytes_of(read_of(1, kTooFar, 1))), EINVAL);
}

fuse_write_in write_of(std::uint32_t size) {
  return {.fh = 31,
          .offset = 512,
          .size = size,
          .write_flags = 1,
          .lock_owner = 0,
          .flags = 2,
          .padding = 0};
}

TEST_F(Operations, WriteLeavesItsDataInGuestMemory) {
  for (const std::size_t piece : {std::size_t{1} << 30, std::size_t{7}}) {
    guest.piece = piece;
    const Reply reply = guest.send(FUSE_WRITE, bytes_of(write_of(5), "hello"));
    EXPECT_EQ(guest.fs.last(), "write 7 31 512 5 1 2 hello");
    EXPECT_EQ(reply.used, 16U + 8U);
    EXPECT_EQ(reply.as<fuse_write_out>().size, 5U);
  }
}

TEST_F(Operations, WriteRefusesASizeBeyondItsData) {
  expect_refused(guest.send(FUSE_WRITE, bytes_of(write_of(7), "hello")), EINVAL);
  expect_refused(guest.send(FUSE_WRITE, bytes_of(write_of(0xffffffff), "hello")), EINVAL);
  guest.len = 40 + 40 + 4;  // the header's length rules
  expect_refused(guest.send(FUSE_WRITE, bytes_of(write_of(5), "hello")), EINVAL);
  guest.len = 40 + 39;
  expect_refused(guest.send(FUSE_WRITE, bytes_of(write_of(0), "hello")), EINVAL);
}

TEST_F(Operations, WriteRefusesAnOffsetBeyondTheLast) {
  fuse_write_in in = write_of(1);
  in.offset = kTooFar;
  expect_refused(guest.send(FUSE_WRITE, bytes_of(in, "x")), EINVAL);
}

TEST_F(Operations, FlushReleaseAndFsync) {
  expect_done(guest.send(FUSE_FLUSH, bytes_of(fuse_flush_in{31, 0, 0, 99})), "flush 7 31 99");
  const fuse_release_in release{.fh = 31, .flags = 2, .release_flags = 3, .lock_owner = 99};
  expect_done(guest.send(FUSE_RELEASE, bytes_of(release)), "release 7 31 2 3 99");
  expect_done(guest.send(FUSE_RELEASEDIR, bytes_of(release)), "releasedir 7 31");
  expect_done(guest.send(FUSE_FSYNC, bytes_of(fuse_fsync_in{31, 1, 0})), "fsync 7 31 true");
  expect_done(guest.send(FUSE_FSYNCDIR, bytes_of(fuse_fsync_in{31, 0, 0})), "fsyncdir 7 31 false");
}

TEST_F(Operations, FallocateChecksItsRange) {
  fuse_fallocate_in in{.fh = 31, .offset = 1, .length = 2, .mode = 3, .padding = 0};
  expect_done(guest.send(FUSE_FALLOCATE, bytes_of(in)), "fallocate 7 31 1 2 3");
  guest.fs.calls.clear();
  in.length = kTooFar;
  expect_refused(guest.send(FUSE_FALLOCATE, bytes_of(in)), EINVAL);
  in.length = 1;
  in.offset = kTooFar;
  expect_refused(guest.send(FUSE_FALLOCATE, bytes_of(in)), EINVAL);
}

TEST_F(Operations, LseekAnswersAnOffset) {
  fuse_lseek_in in{.fh = 31, .offset = 10, .whence = 3, .padding = 0};
  const Reply reply = guest.send(FUSE_LSEEK, bytes_of(in));
  EXPECT_EQ(reply.as<fuse_lseek_out>().offset, 4242U);
  EXPECT_EQ(guest.fs.last(), "lseek 7 31 10 3");
  guest.fs.calls.clear();
  in.offset = kTooFar;  // as lseek(2) says of a negative one
  expect_refused(guest.send(FUSE_LSEEK, bytes_of(in)), ENXIO);
}

TEST_F(Operations, CopyFileRangeCountsIn32Bits) {
  fuse_copy_file_range_in in{
      .fh_in = 1, .off_in = 2, .nodeid_out = 3, .fh_out = 4, .off_out = 5, .len = 6, .flags = 0};
  EXPECT_EQ(guest.send(FUSE_COPY_FILE_RANGE, bytes_of(in)).as<fuse_write_out>().size, 6U);
  EXPECT_EQ(guest.fs.last(), "copy 7 1 2 3 4 5 6 0");
  in.len = std::uint64_t{5} << 32;
  EXPECT_EQ(guest.send(FUSE_COPY_FILE_RANGE, bytes_of(in)).as<fuse_write_out>().size, 0x7ffff000U);
  const Reply wide = guest.send(FUSE_COPY_FILE_RANGE_64, bytes_of(in));
  EXPECT_EQ(wide.used, 16U + 8U);
  EXPECT_EQ(wide.as<fuse_copy_file_range_out>().bytes_copied, in.len);
  guest.fs.calls.clear();
  in.off_out = kTooFar;
  expect_refused(guest.send(FUSE_COPY_FILE_RANGE, bytes_of(in)), EINVAL);
}

TEST_F(Operations, IoctlPassesInputAndOutput) {
  fuse_ioctl_in in{.fh = 31, .flags = 0, .cmd = 11, .arg = 12, .in_size = 3, .out_size = 4};
  const Reply reply = guest.send(FUSE_IOCTL, bytes_of(in, "abc"));
  EXPECT_EQ(guest.fs.last(), "ioctl 7 31 0 11 12 4 abc");
  EXPECT_EQ(reply.as<fuse_ioctl_out>().result, 3);
  EXPECT_EQ(reply.used, 16U + 16U + 4U);
}

TEST_F(Operations, IoctlRefusesSizesThatLie) {
  fuse_ioctl_in in{.fh = 31, .flags = 0, .cmd = 11, .arg = 12, .in_size = 5, .out_size = 0};
  expect_refused(guest.send(FUSE_IOCTL, bytes_of(in, "abc")), EINVAL);
  in.in_size = 65537;
  expect_refused(guest.send(FUSE_IOCTL, bytes_of(in, Bytes(65537))), EINVAL);
  in.in_size = 0;
  in.out_size = 65537;
  expect_refused(guest.send(FUSE_IOCTL, bytes_of(in)), EINVAL);
  in.out_size = 8;
  guest.room = 16 + 16 + 7;
  expect_refused(guest.send(FUSE_IOCTL, bytes_of(in)), EINVAL);
}

TEST_F(Operations, ReaddirFillsNoMoreThanAskedRoomOrAMegabyte) {
  fuse_read_in in = read_of(31, 5, 4096);
  guest.send(FUSE_READDIR, bytes_of(in));
  EXPECT_EQ(guest.fs.last(), "readdir 7 31 5 4096");
  in.size = 0xffffffff;
  guest.room = 2U << 20;
  guest.send(FUSE_READDIR, bytes_of(in));
  EXPECT_EQ(guest.fs.last(), "readdir 7 31 5 1048576");
  guest.room = 16 + 100;
  guest.send(FUSE_READDIRPLUS, bytes_of(in));
  EXPECT_EQ(guest.fs.last(), "readdirplus 7 31 5 100");
}

TEST_F(Operations, ReaddirAnswersTheEntriesAndNothingAtTheEnd) {
  EXPECT_EQ(guest.send(FUSE_READDIR, bytes_of(read_of(31, 0, 4096))).used, 16U);
  guest.fs.names = {"one", "two"};
  EXPECT_EQ(guest.send(FUSE_READDIR, bytes_of(read_of(31, 0, 4096))).used, 16U + 2 * 32U);
  const Reply plus = guest.send(FUSE_READDIRPLUS, bytes_of(read_of(31, 0, 4096)));
  EXPECT_EQ(plus.used, 16U + 2 * 160U);
  EXPECT_EQ(std::memcmp(plus.body.data() + 128 + 24, "one", 3), 0);
}

TEST_F(Operations, ReaddirDeliversWhatItHasBeforeAnError) {
  guest.fs.fail_after_names = true;
  EXPECT_EQ(guest.send(FUSE_READDIRPLUS, bytes_of(read_of(31, 0, 4096))).error(), EIO);
  guest.fs.names = {"one"};
  const Reply reply = guest.send(FUSE_READDIRPLUS, bytes_of(read_of(31, 0, 4096)));
  EXPECT_EQ(reply.error(), 0);
  EXPECT_EQ(reply.used, 16U + 160U);
}

TEST_F(Operations, SetxattrHasTheShortStructUnlessTheLongWasNegotiated) {
  expect_done(
      guest.send(FUSE_SETXATTR, bytes_of(std::uint32_t{3}, std::uint32_t{1}, "user.a", "val")),
      "setxattr 7 user.a val 1 0");
  Offer offer;
  offer.posix_acl = Wish::kOn;
  renegotiate(offer, ~0ULL);
  const fuse_setxattr_in in{.size = 3, .flags = 1, .setxattr_flags = 1, .padding = 0};
  expect_done(guest.send(FUSE_SETXATTR, bytes_of(in, "user.a", "val")),
              "setxattr 7 user.a val 1 1");
}

TEST_F(Operations, SetxattrChecksNameAndValue) {
  const auto send = [this](std::uint32_t size, const std::string& name, const Bytes& value) {
    return guest.send(FUSE_SETXATTR, bytes_of(size, std::uint32_t{0}, name, value));
  };
  expect_refused(send(4, "user.a", Bytes(3)), EINVAL);
  expect_refused(send(65537, "user.a", Bytes(65537)), E2BIG);
  expect_refused(send(0, "", {}), ERANGE);
  expect_refused(send(0, std::string(256, 'n'), {}), ERANGE);
  expect_done(send(65536, "user.a", Bytes(65536)), "setxattr 7 user.a [65536] 0 0");
}

TEST_F(Operations, GetxattrAnswersLengthOrValue) {
  Reply reply = guest.send(FUSE_GETXATTR, bytes_of(fuse_getxattr_in{0, 0}, "user.a"));
  EXPECT_EQ(reply.used, 16U + 8U);
  EXPECT_EQ(reply.as<fuse_getxattr_out>().size, 7U);
  reply = guest.send(FUSE_GETXATTR, bytes_of(fuse_getxattr_in{100, 0}, "user.a"));
  EXPECT_EQ(text_of(reply.body), "content");
  EXPECT_EQ(guest.fs.last(), "getxattr 7 user.a 100");
  guest.send(FUSE_GETXATTR, bytes_of(fuse_getxattr_in{0xffffffff, 0}, "user.a"));
  EXPECT_EQ(guest.fs.last(), "getxattr 7 user.a 65536");
  guest.room = 16 + 9;
  guest.send(FUSE_GETXATTR, bytes_of(fuse_getxattr_in{100, 0}, "user.a"));
  EXPECT_EQ(guest.fs.last(), "getxattr 7 user.a 9");
}

TEST_F(Operations, GetxattrWithoutRoomIsNoQuestionForTheLength) {
  guest.room = 16;
  expect_refused(guest.send(FUSE_GETXATTR, bytes_of(fuse_getxattr_in{100, 0}, "user.a")), EINVAL);
  expect_refused(guest.send(FUSE_LISTXATTR, bytes_of(fuse_getxattr_in{100, 0})), EINVAL);
}

TEST_F(Operations, ListxattrAndRemovexattr) {
  Reply reply = guest.send(FUSE_LISTXATTR, bytes_of(fuse_getxattr_in{0, 0}));
  EXPECT_EQ(reply.as<fuse_getxattr_out>().size, 7U);
  guest.fs.content.assign(65536, 'x');
  reply = guest.send(FUSE_LISTXATTR, bytes_of(fuse_getxattr_in{65536, 0}));
  EXPECT_EQ(reply.body.size(), 65536U);
  expect_done(guest.send(FUSE_REMOVEXATTR, bytes_of("user.a")), "removexattr 7 user.a");
}

fuse_lk_in lock_of(std::uint64_t start, std::uint64_t end, std::uint32_t type,
                   std::uint32_t flags = 0) {
  fuse_lk_in in{};
  in.fh = 31;
  in.owner = 99;
  in.lk = {.start = start, .end = end, .type = type, .pid = 5};
  in.lk_flags = flags;
  return in;
}

TEST_F(Operations, LocksTellTestSetAndWaitApart) {
  const Reply reply = guest.send(FUSE_GETLK, bytes_of(lock_of(0, 9, F_WRLCK)));
  EXPECT_EQ(reply.used, 16U + 24U);
  EXPECT_EQ(reply.as<fuse_file_lock>().pid, 9U);
  EXPECT_EQ(guest.fs.last(), "getlk 31 99 0-9 type=1 pid=5 flock=false wait=false");
  expect_done(guest.send(FUSE_SETLK, bytes_of(lock_of(1, 9, F_RDLCK))),
              "setlk 31 99 1-9 type=0 pid=5 flock=false wait=false");
  expect_done(guest.send(FUSE_SETLKW, bytes_of(lock_of(1, 9, F_UNLCK, FUSE_LK_FLOCK))),
              "setlk 31 99 1-9 type=2 pid=5 flock=true wait=true");
}

TEST_F(Operations, LocksRefuseWhatIsNoRangeOrType) {
  expect_refused(guest.send(FUSE_SETLK, bytes_of(lock_of(9, 8, F_RDLCK))), EINVAL);
  expect_refused(guest.send(FUSE_SETLK, bytes_of(lock_of(0, kTooFar, F_RDLCK))), EINVAL);
  expect_refused(guest.send(FUSE_SETLK, bytes_of(lock_of(0, 9, 3))), EINVAL);
}

TEST_F(Operations, InterruptIsPassedOnWithoutAnAnswer) {
  EXPECT_EQ(guest.send(FUSE_INTERRUPT, bytes_of(fuse_interrupt_in{1234})).used, 0U);
  EXPECT_EQ(guest.fs.last(), "interrupt 1234");
}

TEST_F(Operations, WhatIsNotThereIsAnsweredEnosys) {
  for (const std::uint32_t opcode :
       {FUSE_BMAP, FUSE_POLL, FUSE_NOTIFY_REPLY, FUSE_SETUPMAPPING, FUSE_REMOVEMAPPING})
    expect_refused(guest.send(opcode, Bytes(64)), ENOSYS);
}

TEST_F(Operations, EveryArgumentStructIsRefusedWhenItIsCut) {
  // The last byte of the fixed part is missing; nothing is done.
  const std::pair<std::uint32_t, std::size_t> fixed[] = {
      {FUSE_GETATTR, sizeof(fuse_getattr_in)},
      {FUSE_SETATTR, sizeof(fuse_setattr_in)},
      {FUSE_STATX, sizeof(fuse_statx_in)},
      {FUSE_ACCESS, sizeof(fuse_access_in)},
      {FUSE_OPEN, sizeof(fuse_open_in)},
      {FUSE_OPENDIR, sizeof(fuse_open_in)},
      {FUSE_READ, sizeof(fuse_read_in)},
      {FUSE_WRITE, sizeof(fuse_write_in)},
      {FUSE_READDIR, sizeof(fuse_read_in)},
      {FUSE_READDIRPLUS, sizeof(fuse_read_in)},
      {FUSE_RELEASE, sizeof(fuse_release_in)},
      {FUSE_RELEASEDIR, sizeof(fuse_release_in)},
      {FUSE_FLUSH, sizeof(fuse_flush_in)},
      {FUSE_FSYNC, sizeof(fuse_fsync_in)},
      {FUSE_FSYNCDIR, sizeof(fuse_fsync_in)},
      {FUSE_FALLOCATE, sizeof(fuse_fallocate_in)},
      {FUSE_LSEEK, sizeof(fuse_lseek_in)},
      {FUSE_COPY_FILE_RANGE, sizeof(fuse_copy_file_range_in)},
      {FUSE_COPY_FILE_RANGE_64, sizeof(fuse_copy_file_range_in)},
      {FUSE_IOCTL, sizeof(fuse_ioctl_in)},
      {FUSE_GETLK, sizeof(fuse_lk_in)},
      {FUSE_SETLK, sizeof(fuse_lk_in)},
      {FUSE_SETLKW, sizeof(fuse_lk_in)},
      {FUSE_LISTXATTR, sizeof(fuse_getxattr_in)},
      {FUSE_MKNOD, sizeof(fuse_mknod_in)},
      {FUSE_MKDIR, sizeof(fuse_mkdir_in)},
      {FUSE_CREATE, sizeof(fuse_create_in)},
      {FUSE_TMPFILE, sizeof(fuse_create_in)},
      {FUSE_LINK, sizeof(fuse_link_in)},
      {FUSE_RENAME, sizeof(fuse_rename_in)},
      {FUSE_RENAME2, sizeof(fuse_rename2_in)},
  };
  for (const auto& [opcode, size] : fixed) {
    expect_refused(guest.send(opcode, Bytes(size - 1)), EINVAL);
    expect_refused(guest.send(opcode), EINVAL);
  }
  guest.send(FUSE_FORGET, Bytes(7));
  guest.send(FUSE_BATCH_FORGET, Bytes(7));
  guest.send(FUSE_INTERRUPT, Bytes(7));
  EXPECT_TRUE(guest.fs.calls.empty());
}

TEST_F(Operations, NoTruncationOfAnyRequestIsMoreThanAnError) {
  // Every length of every request, with every opcode: an answer that is whole, or none.
  const Bytes arguments(96, std::byte{1});
  for (std::uint32_t opcode = 0; opcode < 60; ++opcode) {
    for (std::size_t size = 0; size <= arguments.size(); ++size) {
      for (const std::size_t room : {std::size_t{0}, std::size_t{16}, std::size_t{200}}) {
        guest.room = room;
        const Reply reply = guest.send(
            opcode,
            Bytes(arguments.begin(), arguments.begin() + static_cast<std::ptrdiff_t>(size)));
        ASSERT_EQ(reply.used, reply.header.len);
        ASSERT_TRUE(guest.untouched);
      }
    }
  }
}

// ---- Extensions

Bytes padded(Bytes bytes) {
  bytes.resize((bytes.size() + 7) & ~std::size_t{7});
  return bytes;
}

Bytes security_block(const char* name, const char* value) {
  const auto value_size = static_cast<std::uint32_t>(std::strlen(value));
  Bytes context = bytes_of(fuse_secctx{.size = value_size, .padding = 0}, name, value);
  context.pop_back();  // the value has no NUL
  context = padded(std::move(context));
  const auto size = static_cast<std::uint32_t>(8 + context.size());
  return bytes_of(fuse_secctx_header{.size = size, .nr_secctx = 1}, context);
}

Bytes group_block(std::uint32_t group) {
  return bytes_of(fuse_ext_header{.size = 16, .type = FUSE_EXT_GROUPS}, std::uint32_t{1}, group);
}

class Extensions : public Operations {
 protected:
  Extensions() {
    Offer offer;
    offer.security_label = Wish::kOn;
    renegotiate(offer, ~0ULL);
  }
  Reply mkdir(const Bytes& extensions, bool counted) {
    guest.extension_words = static_cast<std::uint16_t>(counted ? extensions.size() / 8 : 0);
    return guest.send(FUSE_MKDIR, bytes_of(fuse_mkdir_in{}, "dir", extensions));
  }
};

TEST_F(Extensions, ASecurityContextFollowsTheNames) {
  for (const bool counted : {false, true}) {
    expect_entry(mkdir(security_block("security.selinux", "label"), counted), "mkdir 7 dir 0 0");
    ASSERT_TRUE(guest.fs.security);
    EXPECT_EQ(guest.fs.security->name, "security.selinux");
    EXPECT_EQ(text_of(guest.fs.security->value), "label");
  }
}

TEST_F(Extensions, EveryCreateTakesThem) {
  const Bytes both = bytes_of(security_block("security.selinux", "label"), group_block(4711));
  guest.extension_words = static_cast<std::uint16_t>(both.size() / 8);
  const auto expect_both = [this](const Reply& reply) {
    EXPECT_EQ(reply.error(), 0);
    ASSERT_TRUE(guest.fs.security);
    EXPECT_EQ(text_of(guest.fs.security->value), "label");
    EXPECT_EQ(guest.fs.group, 4711U);
  };
  expect_both(guest.send(FUSE_MKNOD, bytes_of(fuse_mknod_in{}, "n", both)));
  expect_both(guest.send(FUSE_MKDIR, bytes_of(fuse_mkdir_in{}, "n", both)));
  expect_both(guest.send(FUSE_SYMLINK, bytes_of("n", "target", both)));
  EXPECT_EQ(guest.fs.last(), "symlink 7 n target");
  expect_both(guest.send(FUSE_CREATE, bytes_of(fuse_create_in{}, "n", both)));
  expect_both(guest.send(FUSE_TMPFILE, bytes_of(fuse_create_in{}, "/", both)));
}

TEST_F(Extensions, NothingIsSetWhenNoneCame) {
  expect_entry(mkdir({}, false), "mkdir 7 dir 0 0");
  EXPECT_FALSE(guest.fs.security);
  EXPECT_FALSE(guest.fs.group);
  expect_entry(mkdir(bytes_of(fuse_secctx_header{.size = 8, .nr_secctx = 0}), true),
               "mkdir 7 dir 0 0");
  EXPECT_FALSE(guest.fs.security);
}

TEST_F(Extensions, AnUnknownOneIsSkipped) {
  const Bytes unknown = bytes_of(fuse_ext_header{.size = 16, .type = 77}, std::uint64_t{0});
  expect_entry(mkdir(bytes_of(unknown, group_block(5)), true), "mkdir 7 dir 0 0");
  EXPECT_EQ(guest.fs.group, 5U);
}

TEST_F(Extensions, AreIgnoredWhenNotNegotiated) {
  renegotiate({}, FUSE_INIT_EXT | FUSE_CREATE_SUPP_GROUP);
  expect_entry(mkdir(bytes_of(security_block("security.selinux", "label"), group_block(5)), true),
               "mkdir 7 dir 0 0");
  EXPECT_FALSE(guest.fs.security);
  EXPECT_EQ(guest.fs.group, 5U);
  renegotiate({}, 0);
  expect_entry(mkdir(group_block(5), true), "mkdir 7 dir 0 0");
  EXPECT_FALSE(guest.fs.group);
  guest.extension_words = 0xffff;
  expect_entry(guest.send(FUSE_MKDIR, bytes_of(fuse_mkdir_in{}, "dir")), "mkdir 7 dir 0 0");
}

TEST_F(Extensions, RefuseEverySizeThatLies) {
  const Bytes whole = security_block("security.selinux", "label");
  for (std::size_t size = 8; size < whole.size(); size += 8)
    expect_refused(
        mkdir(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)), true),
        EINVAL);
  guest.extension_words = 0xffff;
  expect_refused(guest.send(FUSE_MKDIR, bytes_of(fuse_mkdir_in{}, "dir")), EINVAL);
  for (const std::uint32_t size : {0U, 7U, 24U, 0xffffffffU})
    expect_refused(mkdir(bytes_of(fuse_ext_header{.size = size, .type = 32}, std::uint32_t{1},
                                  std::uint32_t{5}),
                         true),
                   EINVAL);
  // More than one of either, or a group that isn't there.
  expect_refused(mkdir(bytes_of(fuse_secctx_header{.size = 8, .nr_secctx = 2}), true), EINVAL);
  expect_refused(
      mkdir(bytes_of(fuse_ext_header{.size = 16, .type = 32}, std::uint32_t{2}, std::uint32_t{5}),
            true),
      EINVAL);
  // A context longer than its block.
  expect_refused(mkdir(bytes_of(fuse_secctx_header{.size = 24, .nr_secctx = 1},
                                fuse_secctx{.size = 9, .padding = 0}, "abcdefg"),
                       true),
                 EINVAL);
}

TEST_F(Extensions, AreNoPartOfTheDataOfAWrite) {
  guest.extension_words = 1;
  expect_refused(guest.send(FUSE_WRITE, bytes_of(write_of(9), Bytes(16))), EINVAL);
  EXPECT_EQ(guest.send(FUSE_WRITE, bytes_of(write_of(8), Bytes(16))).error(), 0);
}

}  // namespace
}  // namespace virtiofsd::fuse
