// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include <linux/fs.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <array>
#include <fstream>

#include "passthrough/passthrough_fixture.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

class Io : public PassthroughTest {
 protected:
  Result<fuse_open_out> try_open(NodeId node, int flags, std::uint32_t open_flags = 0) {
    auto c = call(node);
    return fs().open(c, static_cast<std::uint32_t>(flags), open_flags);
  }
  std::string read(NodeId node, HandleId handle, std::uint64_t offset, std::uint32_t size) {
    auto c = call(node);
    Answer answer{size};
    const auto done = fs().read(
        c, {.handle = handle, .offset = offset, .size = size, .flags = O_RDONLY}, answer.body);
    EXPECT_TRUE(done) << done.error().text();
    return answer.data();
  }
};

TEST_F(Io, ReadsAndWritesWhereAsked) {
  write_file("a", "0123456789");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  EXPECT_EQ(read(a, handle, 3, 4), "3456");
  EXPECT_EQ(read(a, handle, 8, 100), "89");
  EXPECT_EQ(read(a, handle, 10, 100), "");
  EXPECT_EQ(*write(a, handle, "ab", 4), 2U);
  EXPECT_EQ(read_file("a"), "0123ab6789");
  EXPECT_EQ(scheduler_.blocks, 0) << "what is in the page cache doesn't block";
}

TEST_F(Io, AShortReadFromTheCacheIsCompletedFromTheDisk) {
  constexpr std::size_t kHalf = std::size_t{1} << 20;
  write_file("a", std::string(kHalf, 'a') + std::string(kHalf, 'b'));
  {
    const UniqueFd fd{::open(path("a").c_str(), O_RDONLY | O_CLOEXEC)};
    ASSERT_EQ(::fsync(fd.number()), 0);
    ASSERT_EQ(::posix_fadvise(fd.number(), kHalf, 0, POSIX_FADV_DONTNEED), 0);
  }
  const NodeId a = lookup("a");
  EXPECT_EQ(read(a, open(a, O_RDONLY), 0, 2 * kHalf),
            std::string(kHalf, 'a') + std::string(kHalf, 'b'));
}

// By this a crew knows that a second thread would only wait.
TEST_F(Io, LargeWritesSayThatTheyTakeTurns) {
  write_file("a", "");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  ASSERT_TRUE(write(a, handle, std::string(4096, 'x'), 0));
  EXPECT_EQ(scheduler_.turns, 0);
  ASSERT_TRUE(write(a, handle, std::string(128 << 10, 'x'), 0));
  EXPECT_EQ(scheduler_.turns, 1);
  ASSERT_EQ(read(a, handle, 0, 128 << 10).size(), 128U << 10);
  EXPECT_EQ(scheduler_.turns, 1) << "reads don't wait for each other";
}

TEST_F(Io, OpensNothingButRegularFiles) {
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0666), 0);
  ASSERT_EQ(::mknod(path("null").c_str(), S_IFCHR | 0666, 0x103), 0);
  ASSERT_EQ(::symlink("/etc/passwd", path("link").c_str()), 0);
  ::mkdir(path("dir").c_str(), 0755);
  EXPECT_EQ(try_open(lookup("fifo"), O_RDONLY).error(), Errno{ENXIO});
  EXPECT_EQ(try_open(lookup("null"), O_RDWR).error(), Errno{ENXIO});
  EXPECT_EQ(try_open(lookup("link"), O_RDONLY).error(), Errno{ELOOP});
  EXPECT_EQ(try_open(lookup("dir"), O_RDONLY).error(), Errno{EISDIR});
}

TEST_F(Io, AHandleBelongsToItsNode) {
  write_file("a", "");
  write_file("b", "");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  EXPECT_EQ(write(lookup("b"), handle, "x", 0).error(), Errno{EBADF});
  auto c = call(a);
  ASSERT_TRUE(fs().release(c, {.handle = handle, .flags = 0, .release_flags = 0, .owner = {}}));
  EXPECT_EQ(write(a, handle, "x", 0).error(), Errno{EBADF});
  EXPECT_EQ(
      fs().release(c, {.handle = handle, .flags = 0, .release_flags = 0, .owner = {}}).error(),
      Errno{EBADF});
}

TEST_F(Io, AppendsAtTheEndThatTheHostSees) {
  write_file("a", "0123");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_WRONLY | O_APPEND);
  EXPECT_TRUE(write(a, handle, "45", 0, O_WRONLY | O_APPEND));
  EXPECT_EQ(read_file("a"), "012345");
  EXPECT_TRUE(write(a, handle, "ab", 1, O_WRONLY | O_APPEND, FUSE_WRITE_CACHE));
  EXPECT_EQ(read_file("a"), "0ab345") << "a page written back goes where it belongs";
}

TEST_F(Io, WritebackReadsWhatItWritesAround) {
  session_.flags |= FUSE_WRITEBACK_CACHE;
  write_file("a", "0123");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_WRONLY | O_APPEND);
  EXPECT_EQ(read(a, handle, 0, 4), "0123");
  EXPECT_TRUE(write(a, handle, "x", 1, O_WRONLY | O_APPEND));
  EXPECT_EQ(read_file("a"), "0x23");
}

TEST_F(Io, AWriteTakesSetIdBitsOffOnlyWhenAsked) {
  write_file("a", "text", 06755);
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  ASSERT_TRUE(write(a, handle, "x", 0));
  EXPECT_EQ(host("a").st_mode & 07777, 06755U);
  ASSERT_TRUE(write(a, handle, "x", 0, O_RDWR, FUSE_WRITE_KILL_SUIDGID));
  EXPECT_EQ(host("a").st_mode & 07777, 0755U);
  write_file("b", "text", 04755);
  const NodeId b = lookup("b");
  ASSERT_TRUE(try_open(b, O_RDWR | O_TRUNC, FUSE_OPEN_KILL_SUIDGID));
  EXPECT_EQ(host("b").st_mode & 07777, 0755U);
}

// As the host has it for a process in that group: only with group execute is it a set-group-id bit.
TEST_F(Io, WhoIsInTheGroupKeepsASetGroupIdBitThatNobodyCanUse) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  write_file("a", "text", 02666);
  const NodeId a = lookup("a");
  ASSERT_EQ(::chown(path("a").c_str(), 0, 1234), 0);
  ASSERT_EQ(::chmod(path("a").c_str(), 02666), 0);
  const HandleId handle = open(a, O_RDWR);
  ASSERT_TRUE(write(a, handle, "x", 0, O_RDWR, FUSE_WRITE_KILL_SUIDGID, 1000, 1234));
  EXPECT_EQ(host("a").st_mode & 07777, 02666U);
  ASSERT_TRUE(write(a, handle, "x", 0, O_RDWR, FUSE_WRITE_KILL_SUIDGID, 1000, 1235));
  EXPECT_EQ(host("a").st_mode & 07777, 0666U);
  // ALLOW_IDMAP: the caller isn't told.
  ASSERT_EQ(::chmod(path("a").c_str(), 06666), 0);
  ASSERT_TRUE(write(a, handle, "x", 0, O_RDWR, FUSE_WRITE_KILL_SUIDGID, ~0U, ~0U));
  EXPECT_EQ(host("a").st_mode & 07777, 02666U);
  EXPECT_EQ(sys::fs_gid(), 0U);
}

TEST_F(Io, AllocatingAndCopyingTakeSetIdBitsOffForOrdinaryUsers) {
  write_file("from", "text");
  write_file("a", "text", 06755);
  const NodeId from = lookup("from");
  const NodeId a = lookup("a");
  const HandleId source = open(from, O_RDONLY);
  const HandleId handle = open(a, O_RDWR);
  fuse_fallocate_in in{};
  in.fh = handle.value;
  in.length = 4096;
  const auto allocate = [&](std::uint32_t uid) {
    auto c = call(a, uid, uid);
    return fs().fallocate(c, in);
  };
  const auto copy = [&](std::uint32_t uid) {
    auto c = call(from, uid, uid);
    return fs().copy_file_range(c, {.from = source,
                                    .from_offset = 0,
                                    .to_node = a,
                                    .to = handle,
                                    .to_offset = 0,
                                    .length = 4,
                                    .flags = 0});
  };
  ASSERT_TRUE(allocate(0));
  ASSERT_TRUE(copy(0));
  EXPECT_EQ(host("a").st_mode & 07777, 06755U);
  ASSERT_TRUE(allocate(1000));
  EXPECT_EQ(host("a").st_mode & 07777, 0755U);
  ::chmod(path("a").c_str(), 06755);
  ASSERT_TRUE(copy(1000));
  EXPECT_EQ(host("a").st_mode & 07777, 0755U);
  // ALLOW_IDMAP: the guest doesn't say who asks, but that the bits go, by a SETATTR before.
  ::chmod(path("a").c_str(), 06755);
  ASSERT_TRUE(allocate(~0U));
  ASSERT_TRUE(copy(~0U));
  EXPECT_EQ(host("a").st_mode & 07777, 06755U);
}

// Guests without HANDLE_KILLPRIV_V2 don't ask for it.
TEST_F(Io, ATruncatingOpenTakesSetIdBitsOffForOrdinaryUsers) {
  write_file("a", "text", 04755);
  const NodeId a = lookup("a");
  const auto truncate = [&](std::uint32_t uid) {
    auto c = call(a, uid, uid);
    return fs().open(c, O_RDWR | O_TRUNC, 0);
  };
  ASSERT_TRUE(truncate(0));
  EXPECT_EQ(host("a").st_mode & 07777, 04755U);
  ASSERT_TRUE(truncate(1000));
  EXPECT_EQ(host("a").st_mode & 07777, 0755U);
  ::chmod(path("a").c_str(), 04755);
  session_.flags |= FUSE_HANDLE_KILLPRIV_V2;
  ASSERT_TRUE(truncate(1000));
  EXPECT_EQ(host("a").st_mode & 07777, 04755U) << "it knows whether its caller may keep them";
}

// Room for half of what is written.
TEST_F(Io, AWriteThatIsCutShortIsAnErrorForPagesWrittenBack) {
  write_file("a", "");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto plain = write(a, handle, std::string(8192, 'a'), 0);
  const auto cached = write(a, handle, std::string(8192, 'b'), 0, O_RDWR, FUSE_WRITE_CACHE);
  const auto direct = write(a, handle, std::string(8192, 'c'), 0, O_RDWR | O_DIRECT);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(*plain, 4096U);
  EXPECT_EQ(cached.error(), Errno{EFBIG}) << "the guest would take the rest for written";
  EXPECT_EQ(direct.error(), Errno{EFBIG}) << "the guest would make it EIO";
}

// The second half of where it is to go can't be written, as if the disk had a bad block there.
TEST_F(Io, AReadThatFailsHalfwayIsAnErrorForAGuestThatCaches) {
  write_file("a", std::string(8192, 'a'));
  void* const memory =
      ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(::mprotect(static_cast<char*>(memory) + 4096, 4096, PROT_NONE), 0);
  iovec piece{.iov_base = memory, .iov_len = 8192};
  std::vector<std::byte> buffer(64);
  const auto got = [&](int flags) -> Result<std::size_t> {
    SharedBytes shared{std::span{&piece, 1}, 8192};
    fuse::Body body{shared, buffer};
    const NodeId a = lookup("a");
    auto c = call(a);
    TRY(fs().read(c,
                  {.handle = open(a, O_RDONLY),
                   .offset = 0,
                   .size = 8192,
                   .flags = static_cast<std::uint32_t>(flags)},
                  body));
    return body.size();
  };
  EXPECT_EQ(got(O_RDONLY).error(), Errno{EFAULT}) << "a short one would be the end of the file";
  EXPECT_EQ(*got(O_RDONLY | O_DIRECT), 4096U);
  fs_.reset();
  settings_.cache = CacheMode::kNone;
  EXPECT_EQ(*got(O_RDONLY), 4096U);
  fs_.reset();
  ::munmap(memory, 8192);
}

TEST_F(Io, DirectIoIsOptional) {
  write_file("a", std::string(8192, 'a'));
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR | O_DIRECT);
  EXPECT_EQ(read(a, handle, 1, 3), "aaa") << "stripped, so nothing needs to be aligned";
}

TEST_F(Io, MisalignedDirectRequestsLoseNothing) {
  settings_.allow_direct_io = true;
  write_file("a", std::string(8192, 'a'));
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR | O_DIRECT);
  EXPECT_EQ(read(a, handle, 1, 3), "aaa");
  EXPECT_EQ(*write(a, handle, "xyz", 4097, O_RDWR | O_DIRECT, FUSE_WRITE_CACHE), 3U);
  EXPECT_EQ(read_file("a").substr(4096, 5), "axyza");
}

// The page cache has nothing to do with it, and RWF_NOWAIT doesn't keep it from waiting.
TEST_F(Io, ADirectReadSaysThatItWaitsForTheDevice) {
  settings_.allow_direct_io = true;
  write_file("a", std::string(8192, 'a'));
  const NodeId a = lookup("a");
  const HandleId cached = open(a, O_RDWR);
  const HandleId direct = open(a, O_RDWR | O_DIRECT);
  read(a, cached, 0, 4096);
  EXPECT_EQ(scheduler_.blocks, 0);
  read(a, direct, 0, 4096);
  EXPECT_EQ(scheduler_.blocks, 1);
}

TEST_F(Io, AnAppendOnlyFileIsAppendedToPastACacheThatWritesBack) {
  session_.flags |= FUSE_WRITEBACK_CACHE;
  write_file("log", "one ");
  const UniqueFd log{::open(path("log").c_str(), O_RDONLY | O_CLOEXEC)};
  int before = 0;  // to be kept: without its other flags ext4 would make another kind of file of it
  const bool has_flags = ::ioctl(log.number(), FS_IOC_GETFLAGS, &before) == 0;
  const auto mark = [&](int flags) { return ::ioctl(log.number(), FS_IOC_SETFLAGS, &flags) == 0; };
  if (!has_flags || !mark(before | FS_APPEND_FL)) GTEST_SKIP() << "no append-only files here";
  const NodeId node = lookup("log");
  const auto opened = try_open(node, O_WRONLY | O_APPEND);
  EXPECT_TRUE(opened);
  if (opened) {
    EXPECT_NE(opened->open_flags & FOPEN_DIRECT_IO, 0U);
    EXPECT_TRUE(write(node, HandleId{opened->fh}, "two", 4, O_WRONLY | O_APPEND));
  }
  EXPECT_EQ(try_open(node, O_WRONLY).error(), Errno{EPERM});
  EXPECT_TRUE(mark(before));
  EXPECT_EQ(read_file("log"), "one two");
}

// RWF_DSYNC of the guest's caller is in the request's flags, not in the file's.
TEST_F(Io, AWriteThatPassesTheGuestsCacheIsSyncedWhenAsked) {
  settings_.cache = CacheMode::kNone;
  write_file("a", "");
  const NodeId a = lookup("a");
  const HandleId file = open(a, O_RDWR);
  const auto blocks = [&](int flags, std::uint32_t write_flags) {
    scheduler_.blocks = 0;
    EXPECT_TRUE(write(a, file, "text", 0, O_RDWR | flags, write_flags));
    return scheduler_.blocks;
  };
  EXPECT_EQ(blocks(0, 0), 0);
  EXPECT_EQ(blocks(O_DSYNC, 0), 1);
  EXPECT_EQ(blocks(O_SYNC, 0), 1);
  EXPECT_EQ(blocks(O_DSYNC, FUSE_WRITE_CACHE), 0);
}

TEST_F(Io, OpenFlagsFollowTheCacheMode) {
  write_file("a", "");
  EXPECT_EQ(try_open(lookup("a"), O_RDWR)->open_flags & (FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE), 0U);
  fs_.reset();
  settings_.cache = CacheMode::kNone;
  EXPECT_NE(try_open(lookup("a"), O_RDWR)->open_flags & FOPEN_DIRECT_IO, 0U);
  fs_.reset();
  settings_.cache = CacheMode::kAlways;
  EXPECT_NE(try_open(lookup("a"), O_RDWR)->open_flags & FOPEN_KEEP_CACHE, 0U);
  EXPECT_NE(try_open(lookup("a"), O_RDONLY)->open_flags & FOPEN_NOFLUSH, 0U);
  session_.flags |= FUSE_POSIX_LOCKS;
  EXPECT_EQ(try_open(lookup("a"), O_RDONLY)->open_flags & FOPEN_NOFLUSH, 0U);
}

TEST_F(Io, HolesAreFoundPunchedAndAllocated) {
  write_file("a", std::string(65536, 'a'));
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR | O_APPEND);
  auto c = call(a);
  fuse_fallocate_in in{};
  in.fh = handle.value;
  in.offset = 4096;
  in.length = 8192;
  in.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  const auto punched = fs().fallocate(c, in);
  if (!punched && punched.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no holes here";
  ASSERT_TRUE(punched) << punched.error().text();
  EXPECT_EQ(*fs().lseek(c, handle, 0, SEEK_HOLE), 4096U);
  EXPECT_EQ(*fs().lseek(c, handle, 4096, SEEK_DATA), 4096U + 8192U);
  EXPECT_EQ(fs().lseek(c, handle, 0, SEEK_SET).error(), Errno{EINVAL});
  // What a guest that buffers writes has put into the hole isn't here yet.
  c.session.flags |= FUSE_WRITEBACK_CACHE;
  EXPECT_EQ(fs().lseek(c, handle, 0, SEEK_HOLE).error(), Errno{ENOSYS});
  EXPECT_EQ(fs().lseek(c, handle, 4096, SEEK_DATA).error(), Errno{ENOSYS});
  in.length = ~std::uint64_t{0};
  EXPECT_EQ(fs().fallocate(c, in).error(), Errno{EFBIG});
}

TEST_F(Io, CopyFileRangeCopiesBetweenNodes) {
  write_file("a", "0123456789");
  write_file("b", "");
  const NodeId a = lookup("a");
  const NodeId b = lookup("b");
  auto c = call(a);
  fuse::CopyArgs args{.from = open(a, O_RDONLY),
                      .from_offset = 2,
                      .to_node = b,
                      .to = open(b, O_WRONLY | O_APPEND),
                      .to_offset = 0,
                      .length = 5,
                      .flags = 0};
  const auto copied = fs().copy_file_range(c, args);
  ASSERT_TRUE(copied) << copied.error().text();
  EXPECT_EQ(read_file("b"), std::string("0123456789").substr(2, *copied));
  args.flags = 1;
  EXPECT_EQ(fs().copy_file_range(c, args).error(), Errno{EINVAL});
}

TEST_F(Io, SyncsAndFlushes) {
  write_file("a", "x");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  auto c = call(a);
  EXPECT_TRUE(fs().flush(c, handle, LockOwner{7}));
  EXPECT_EQ(scheduler_.blocks, 0);
  EXPECT_TRUE(fs().fsync(c, handle, false));
  EXPECT_TRUE(fs().fsync(c, handle, true));
  auto root = call();
  EXPECT_TRUE(fs().syncfs(root));
  EXPECT_EQ(scheduler_.blocks, 3);
}

TEST_F(Io, InodeFlagsAreTheOnlyIoctls) {
  write_file("a", "x");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDONLY);
  auto c = call(a);
  Answer answer{128};
  EXPECT_EQ(
      fs().ioctl(c, {.handle = handle, .flags = 0, .command = FIBMAP, .argument = 0, .out_size = 8},
                 {}, answer.body)
          .error(),
      Errno{ENOTTY});
  const auto got = fs().ioctl(c,
                              {.handle = handle,
                               .flags = 0,
                               .command = static_cast<std::uint32_t>(FS_IOC_GETFLAGS),
                               .argument = 0,
                               .out_size = 4},
                              {}, answer.body);
  if (!got && got.error() == Errno{ENOTTY}) GTEST_SKIP() << "no inode flags here";
  ASSERT_TRUE(got);
  EXPECT_EQ(answer.body.size(), sizeof(fuse_ioctl_out) + 4);
  const std::array<std::byte, 2> cut{};
  EXPECT_EQ(fs().ioctl(c,
                       {.handle = handle,
                        .flags = 0,
                        .command = static_cast<std::uint32_t>(FS_IOC_SETFLAGS),
                        .argument = 0,
                        .out_size = 0},
                       cut, answer.body)
                .error(),
            Errno{EINVAL});
}

// ---- served again by a successor ----------------------------------------------------

class IoAgain : public Io {
 protected:
  Result<std::uint32_t> append(const fuse::Call& made, HandleId handle, std::string text,
                               std::uint64_t offset, std::uint32_t write_flags = 0,
                               int flags = O_WRONLY | O_APPEND) {
    // In two pieces, as the guest's pages are.
    const std::size_t half = text.size() / 2;
    std::array<iovec, 2> pieces{
        iovec{.iov_base = text.data(), .iov_len = half},
        iovec{.iov_base = text.data() + half, .iov_len = text.size() - half}};
    fuse::Call c = made;
    return fs().write(c,
                      {.handle = handle,
                       .offset = offset,
                       .size = static_cast<std::uint32_t>(text.size()),
                       .write_flags = write_flags,
                       .flags = static_cast<std::uint32_t>(flags)},
                      IoSpaceAccess::make(pieces, text.size()));
  }
};

TEST_F(IoAgain, AnOpenFileGoesOn) {
  keep_state();
  write_file("a", "0123");
  write_file("gone", "0123");
  const NodeId a = lookup("a");
  const NodeId gone = lookup("gone");
  const HandleId handle = open(a, O_RDWR);
  const HandleId handle_of_gone = open(gone, O_RDWR);
  ASSERT_EQ(::unlink(path("gone").c_str()), 0);
  for (int i = 0; i < 2; ++i) {
    succeed();
    EXPECT_EQ(read(a, handle, 1, 2), "12");
    EXPECT_EQ(read(gone, handle_of_gone, 0, 10), "0123");
    EXPECT_EQ(*write(a, handle, "45", 4), 2U);
    EXPECT_EQ(read_file("a"), "012345");
    EXPECT_EQ(fs().handles().count(), 2U);
    EXPECT_EQ(fs().inodes().count(), 3U);
    const HandleId more = open(a, O_RDONLY);
    EXPECT_EQ(read(a, more, 0, 2), "01");
    auto c = call(a);
    EXPECT_TRUE(fs().release(c, {.handle = more, .flags = 0, .release_flags = 0, .owner = {}}));
  }
  ASSERT_TRUE(fs().init(session_)) << "a new session begins with nothing open";
  EXPECT_EQ(fs().handles().count(), 0U);
  EXPECT_EQ(fs().inodes().count(), 1U);
  EXPECT_EQ(fs().inodes().descriptors(), 0U);
}

TEST_F(IoAgain, WhatIsAppendedAlreadyIsNotAppendedTwice) {
  write_file("a", "0123");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_WRONLY | O_APPEND);
  EXPECT_EQ(*append(again(a), handle, "456", 4), 3U);
  EXPECT_EQ(read_file("a"), "0123456");
  EXPECT_EQ(*append(again(a), handle, "456", 4), 3U);
  EXPECT_EQ(read_file("a"), "0123456");
  // Others went on after it.
  std::ofstream(path("a"), std::ios::app) << "789";
  EXPECT_EQ(*append(again(a), handle, "456", 4), 3U);
  EXPECT_EQ(read_file("a"), "0123456789");
  EXPECT_EQ(*append(call(a), handle, "456", 4), 3U);
  EXPECT_EQ(read_file("a"), "0123456789456") << "asked twice, appended twice";
}

TEST_F(IoAgain, WhatOthersAppendedIsNotTakenForIt) {
  const NodeId a = [&] {
    write_file("a", "0123xyz");
    return lookup("a");
  }();
  const HandleId handle = open(a, O_WRONLY | O_APPEND);
  EXPECT_EQ(*append(again(a), handle, "456", 4), 3U);
  EXPECT_EQ(read_file("a"), "0123xyz456");
}

TEST_F(IoAgain, WhatIsAppendedInPartOnlyIsAppended) {
  write_file("a",
             "0123"
             "45");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_WRONLY | O_APPEND);
  EXPECT_EQ(*append(again(a), handle, "456", 4), 3U);
  EXPECT_EQ(read_file("a"), "012345456") << "nothing is lost";
}

TEST_F(IoAgain, WhatBelongsWhereItIsSaidIsWrittenThere) {
  write_file("a", "0123");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(*append(again(a), handle, "ab", 1, 0, O_RDWR), 2U);
    EXPECT_EQ(*append(again(a), handle, "cd", 4, FUSE_WRITE_CACHE), 2U);
    EXPECT_EQ(read_file("a"), "0ab3cd");
  }
  session_.flags |= FUSE_WRITEBACK_CACHE;
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(*append(again(a), handle, "ef", 6), 2U);
    EXPECT_EQ(read_file("a"), "0ab3cdef");
  }
}

TEST_F(IoAgain, AnAppendIsSyncedWhenAskedThoughItIsDone) {
  settings_.cache = CacheMode::kNone;
  write_file("a", "0123");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_WRONLY | O_APPEND);
  ASSERT_EQ(*append(call(a), handle, "456", 4), 3U);
  scheduler_.blocks = 0;
  EXPECT_EQ(*append(again(a), handle, "456", 4, 0, O_WRONLY | O_APPEND | O_DSYNC), 3U);
  EXPECT_EQ(scheduler_.blocks, 1) << "it waits for the disk";
  EXPECT_EQ(read_file("a"), "0123456");
}

TEST_F(IoAgain, WhatWouldMoveDataTwiceIsRefused) {
  const std::string text = std::string(65536, 'a') + std::string(65536, 'b');
  write_file("a", text);
  const NodeId a = lookup("a");
  fuse_fallocate_in in{};
  in.fh = open(a, O_RDWR).value;
  in.length = 65536;
  for (const unsigned mode : {FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE}) {
    in.mode = mode;
    auto c = again(a);
    EXPECT_EQ(fs().fallocate(c, in).error(), Errno{EIO}) << mode;
    EXPECT_EQ(read_file("a"), text) << mode;
  }
}

TEST_F(IoAgain, WhatMovesNothingIsDoneAgain) {
  write_file("a", std::string(65536, 'a'));
  const NodeId a = lookup("a");
  fuse_fallocate_in in{};
  in.fh = open(a, O_RDWR).value;
  in.length = 100'000;
  auto c = again(a);
  const auto allocated = fs().fallocate(c, in);
  if (!allocated && allocated.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no fallocate here";
  ASSERT_TRUE(allocated) << allocated.error().text();
  ASSERT_TRUE(fs().fallocate(c, in));
  EXPECT_EQ(host("a").st_size, 100'000);
  in.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  in.length = 4096;
  EXPECT_TRUE(fs().fallocate(c, in));
  EXPECT_TRUE(fs().fallocate(c, in));
}

}  // namespace
}  // namespace virtiofsd
